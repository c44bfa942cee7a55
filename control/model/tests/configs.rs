//! What lies in `configs/` is true: every file is accepted, and `reference.toml` has every key with its real default.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ringmesh_model::config::{self, Config, SECTIONS};
use ringmesh_model::error::{Cause, Located};
use ringmesh_model::hop::{Forwarded, Write};
use ringmesh_model::listener::CertificateFiles;
use ringmesh_model::resolve::{Answers, Credentials, resolve};
use ringmesh_model::snapshot::{Certificate, Identity, Snapshot};
use ringmesh_model::spiffe::SpiffeId;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

/// The identity that a config asks for, without certificates.
fn identity(config: &Config) -> Option<Identity> {
    let workload = &config.workload;
    workload.identity.as_ref()?;
    let trust_domain = config.mesh.trust_domain.as_ref().expect("an identity has a trust domain");
    let usual = || SpiffeId::workload(trust_domain, &workload.namespace, &workload.name).expect("a valid ID");
    let id = workload.id.as_ref().map_or_else(usual, |id| id.value.clone());
    Some(Identity { id, chain: Vec::new(), key: Vec::new(), bundle: Vec::new(), expires: 0 })
}

/// What a config names, without certificates.
fn credentials(config: &Config) -> Credentials {
    let nothing = |files: &Located<CertificateFiles>| {
        let certificate = Certificate { names: Vec::new(), chain: Vec::new(), key: Vec::new(), expires: 0 };
        (files.value.clone(), certificate)
    };
    Credentials {
        identity: identity(config),
        certificates: config.certificates().map(nothing).collect(),
        ..Credentials::default()
    }
}

fn snapshot(path: &Path) -> Snapshot {
    let config = config::read(path).unwrap_or_else(|problems| panic!("{problems}"));
    resolve(&config, &Answers::new(), credentials(&config), 1).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn an_address_of_ipv4_in_its_mapped_form_is_that_address() {
    let text = "[[listener]]\nname = \"a\"\nbind = \"[::ffff:127.0.0.1]:8080\"\nservice = \"s\"\n\
                [[service]]\nname = \"s\"\nendpoints = [\"127.0.0.1:1\"]\n";
    let config = config::parse(text, "x.toml").expect("valid");
    assert_eq!(config.listeners[0].bind.value.to_string(), "127.0.0.1:8080");
}

#[test]
fn every_file_resolves() {
    let files: Vec<PathBuf> = fs::read_dir(folder())
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    for name in ["minimal", "sidecar", "edge", "tcp", "reference"] {
        assert!(files.contains(&folder().join(format!("{name}.toml"))), "{name}.toml is there");
    }
    for path in files {
        let snapshot = snapshot(&path);
        assert!(snapshot.objects.len() > 1, "{} configures something", path.display());
    }
}

/// A line `key = value` of the reference, or a header, with the comment above it.
struct Entry {
    /// Path from the top without positions.
    path: String,
    /// Its line, from 0.
    line: usize,
    /// None: a header.
    value: Option<String>,
    comment: Vec<String>,
}

/// Reads the reference line by line; it is written so that this works (a test below notices if not).
fn entries(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut comment = Vec::new();
    let mut header = String::new();
    for (line, content) in text.lines().enumerate() {
        if let Some(words) = content.strip_prefix("# ") {
            comment.push(words.to_owned());
        } else if content.starts_with('[') {
            header = content.trim_matches(['[', ']']).to_owned();
            entries.push(Entry { path: header.clone(), line, value: None, comment: std::mem::take(&mut comment) });
        } else if let Some((key, value)) = content.split_once(" = ") {
            let (path, value) = (format!("{header}.{key}"), Some(value.to_owned()));
            entries.push(Entry { path, line, value, comment: std::mem::take(&mut comment) });
        } else {
            assert!(content.is_empty() || content == "#", "line {}: {content}", line + 1);
            comment.clear();
        }
    }
    entries
}

/// Those that are explained: the first of each.
fn explained(entries: Vec<Entry>) -> Vec<Entry> {
    let mut seen = BTreeSet::new();
    entries.into_iter().filter(|entry| seen.insert(entry.path.clone())).collect()
}

fn reference() -> String {
    fs::read_to_string(folder().join("reference.toml")).expect("the reference is there")
}

#[test]
fn the_reference_has_just_the_keys_that_the_parser_knows() {
    let known: BTreeSet<String> = SECTIONS
        .iter()
        .flat_map(|section| {
            let dot = if section.path.is_empty() { "" } else { "." };
            section.names.iter().map(move |name| format!("{}{dot}{name}", section.path))
        })
        .collect();
    let written: BTreeSet<String> = entries(&reference()).into_iter().map(|entry| entry.path).collect();
    let missing: Vec<_> = known.difference(&written).collect();
    let unknown: Vec<_> = written.difference(&known).collect();
    assert!(missing.is_empty(), "reference.toml lacks {missing:?}");
    assert!(unknown.is_empty(), "the parser does not know {unknown:?}");
}

#[test]
fn the_reference_says_why_of_each_key() {
    let units = ["text", "path", "list", "table", "number", "size", "duration", "address", "true or false", "\""];
    for entry in explained(entries(&reference())) {
        let (path, comment) = (&entry.path, &entry.comment);
        if entry.value.is_none() {
            assert!(!comment.is_empty(), "{path}: a line says what it is");
            continue;
        }
        assert!(comment.len() >= 2, "{path}: a line says why, and one the unit and default");
        let last = comment.last().expect("there are two");
        assert!(units.iter().any(|unit| last.starts_with(unit)), "{path}: `{last}` begins with the unit");
    }
}

/// What the reference says of a key that is absent.
#[derive(Debug, PartialEq)]
enum Absent {
    Required,
    NoDefault,
    Default(String),
}

fn said(entry: &Entry) -> Absent {
    let last = entry.comment.last().expect("each key has a comment");
    match last.rsplit_once(", default ") {
        Some((_, default)) => Absent::Default(default.to_owned()),
        None if last.ends_with(", required") => Absent::Required,
        None if last.contains(", no default: ") => Absent::NoDefault,
        None => panic!("{}: `{last}` says what happens without it", entry.path),
    }
}

#[test]
fn the_reference_tells_the_real_defaults() {
    let text = reference();
    let whole = config::parse(&text, "reference.toml").unwrap_or_else(|problems| panic!("{problems}"));
    let mut defaults = 0;
    for entry in explained(entries(&text)) {
        let Some(value) = &entry.value else { continue };
        let without: Vec<&str> =
            text.lines().enumerate().filter(|(line, _)| *line != entry.line).map(|(_, l)| l).collect();
        let without = config::parse(&without.join("\n"), "reference.toml");
        let path = &entry.path;
        match said(&entry) {
            Absent::Default(default) => {
                assert_eq!(&default, value, "{path}: the default in the comment is what is written");
                // That the admin address was written, not implied, decides only whether a busy port ends the start.
                let without = without.map(|mut config| {
                    config.admin.named = whole.admin.named;
                    config
                });
                assert_eq!(without.as_ref().ok(), Some(&whole), "{path}: {default} is the real default");
                defaults += 1;
            }
            Absent::Required => {
                let problems = without.err().unwrap_or_else(|| panic!("{path}: is required"));
                let named = |cause: &Cause| matches!(cause, Cause::Missing { key, .. } if path.ends_with(key));
                assert!(problems.iter().all(|problem| named(&problem.cause)), "{path}: {problems}");
            }
            Absent::NoDefault => {
                let changed = without.map_or_else(|problems| panic!("{path}: {problems}"), |config| config != whole);
                assert!(changed, "{path}: it says something that absence does not");
            }
        }
    }
    assert!(defaults > 15, "only {defaults} defaults were checked");
}

/// The reference with one line's value replaced.
fn replaced(text: &str, entry: &Entry, value: &str) -> String {
    let key = entry.path.rsplit('.').next().expect("a path has a last part");
    let line = format!("{key} = {value}");
    let lines = text.lines().enumerate().map(|(number, old)| if number == entry.line { line.as_str() } else { old });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_wrong_type_of_any_key_is_told_with_its_line() {
    let text = reference();
    for entry in entries(&text) {
        if entry.value.is_none() {
            continue;
        }
        // No key takes a date.
        let problems = config::parse(&replaced(&text, &entry, "1979-05-27"), "reference.toml");
        let problems = problems.err().unwrap_or_else(|| panic!("{}: a date is refused", entry.path));
        let told = problems.iter().any(|problem| {
            let dateless = problem.to_string().contains("found a date");
            dateless && problem.place.is_some_and(|place| place.line as usize == entry.line + 1)
        });
        assert!(told, "{}: {problems}", entry.path);
    }
}

#[test]
fn strange_values_never_panic_and_problems_have_lines() {
    let text = reference();
    for entry in entries(&text) {
        for value in
            ["3", "-1", "1.5", "true", "\"\"", "\"\\u0000é\"", "[]", "[[]]", "[{}]", "{}", "\"a b\"", "\"*\"", "\"/\""]
        {
            if entry.value.is_none() {
                continue;
            }
            let found = config::parse(&replaced(&text, &entry, value), "reference.toml")
                .and_then(|config| resolve(&config, &Answers::new(), credentials(&config), 1));
            if let Err(problems) = found {
                let placed = problems.iter().all(|problem| problem.place.is_some());
                assert!(placed, "{}: {problems}", entry.path);
            }
        }
    }
}

#[test]
fn half_a_file_never_panics() {
    let text = reference();
    for end in (0..text.len()).step_by(7).filter(|end| text.is_char_boundary(*end)) {
        if let Ok(config) = config::parse(&text[..end], "reference.toml") {
            let _either = resolve(&config, &Answers::new(), None, 1);
        }
    }
}

#[test]
fn the_idle_timeout_of_tcp_is_an_hour() {
    let text = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nservice = \"b\"\n";
    let implied = config::parse(text, "x.toml").expect("valid");
    let written = config::parse(&format!("{text}idle_timeout = \"1h\"\n"), "x.toml").expect("valid");
    assert_eq!(implied, written);
    assert!(reference().contains("default \"1h\""), "and the reference says so");
}

#[test]
fn fields_about_the_client_pass_by_themselves_only_from_the_own_machine_and_from_peers() {
    let implied_with = |bind: &str, mtls: &str, key: &str| {
        let text =
            format!("[[listener]]\nname = \"a\"\nbind = \"{bind}\"\nservice = \"b\"\nmtls = \"{mtls}\"\n{key}\n");
        let config = config::parse(&text, "x.toml").expect("valid");
        config.listeners[0].hop.forwarded.clone()
    };
    let implied = |bind: &str, mtls: &str| implied_with(bind, mtls, "");
    let anew = Some(Forwarded { trust: Vec::new(), write: Write::XForwarded });
    for bind in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[2001:db8::1]:1"] {
        assert_eq!(implied(bind, "off"), anew, "{bind}");
        assert_eq!(implied(bind, "strict"), None, "{bind}");
    }
    for bind in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/run/a.sock"] {
        assert_eq!(implied(bind, "off"), None, "{bind}");
        assert_eq!(implied_with(bind, "off", "intercept = \"outbound\""), None, "{bind}");
        // Whoever connects there speaks for clients from elsewhere.
        for key in ["proxy_protocol = { from = [\"127.0.0.1\", \"unix\"] }", "intercept = \"inbound\""] {
            assert_eq!(implied_with(bind, "off", key), anew, "{bind} {key}");
            assert_eq!(implied_with(bind, "strict", key), None, "{bind} {key}");
        }
    }
}

#[test]
fn the_example_of_the_design_splits_payments() {
    use ringmesh_model::snapshot::{Key, Object};
    let snapshot = snapshot(&folder().join("sidecar.toml"));
    let Some(Object::Route(route)) = snapshot.objects.get(&Key::Route("payments".into())) else {
        panic!("the route is named after its host")
    };
    let shares: Vec<_> = route.rules[0].to.iter().map(|target| (target.service.as_str(), target.weight)).collect();
    assert_eq!(shares, [("payments", 90), ("payments-canary", 10)]);
    let Some(Object::Policy(policy)) = snapshot.objects.get(&Key::Policy("only-checkout".into())) else {
        panic!("the policy is there")
    };
    assert_eq!(policy.allow[0].from[0].as_str(), "spiffe://shop.example/ns/default/sa/checkout");
}

#[test]
fn the_unit_keeps_the_data_plane_alive_and_the_ring_allowed() {
    let unit = fs::read_to_string(folder().join("ringmesh@.service")).expect("the unit is there");
    for line in [
        "ExecStart=/usr/bin/ringmesh run -c /etc/ringmesh/%i.toml --runtime-dir /run/ringmesh/%i",
        "KillMode=process",
        "Restart=always",
        "RuntimeDirectoryPreserve=yes",
        "LimitNOFILE=1048576",
        "LimitMEMLOCK=64M",
        "SystemCallFilter=@system-service io_uring_setup io_uring_enter io_uring_register",
    ] {
        assert!(unit.lines().any(|found| found == line), "the unit has `{line}`");
    }
}
