//! The command line: what it says about wrong configs and identities, its exit codes, help, completions and colour.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ringmesh_tests::certificates::{Authority, Svid, Validity};
use ringmesh_tests::{Driver, Service, on_both_drivers, ports};
use tempfile::TempDir;

use crate::support::{DOMAIN, RINGMESH, forwarding, identity, proxy_to};

/// What a command printed, and its exit code.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

fn run_in(folder: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(RINGMESH);
    command.args(words).current_dir(folder).env("XDG_RUNTIME_DIR", folder).env_remove("RUST_LOG");
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: status.code(), out: text(stdout), error: text(stderr) }
}

// ---- wrong configs ----

/// A good config, in which line numbers are easy to count.
const GOOD: &str = "\
[[listener]]
name = \"front\"
bind = \"127.0.0.1:8000\"
service = \"app\"
[[service]]
name = \"app\"
endpoints = [\"127.0.0.1:8080\"]
";

/// `ringmesh check` on the good config with `from` replaced by `to` says just these lines.
#[track_caller]
fn check(from: &str, to: &str, expected: &[&str]) {
    assert!(GOOD.contains(from) || from == "END", "{from}");
    let text = if from == "END" { format!("{GOOD}{to}") } else { GOOD.replacen(from, to, 1) };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.toml"), text).unwrap();
    let said = run_in(folder.path(), &["check", "c.toml"]);
    let lines: Vec<&str> = said.error.lines().collect();
    assert_eq!((said.code, lines.as_slice(), said.out.as_str()), (Some(2), expected, ""), "{to}");
}

#[test]
fn check_names_file_line_key_and_what_would_be_right() {
    check(
        "service = \"app\"",
        "servise = \"app\"",
        &["c.toml:4: listener \"front\": unknown key `servise`; did you mean `service`?"],
    );
    check("END", "[mesg]\n", &["c.toml:8: unknown section `mesg`; did you mean `mesh`?"]);
    check(
        "[\"127.0.0.1:8080\"]",
        "[8080]",
        &[
            "c.toml:7: service \"app\": `endpoints[0]`: expected an endpoint such as \"10.0.0.7:8080\", \"payments.local:8080\" \
         or \"unix:/run/shop.sock\", found integer 8080",
        ],
    );
    check(
        "END",
        "idle_timeout = \"5 sec\"\n",
        &[
            "c.toml:8: service \"app\": `idle_timeout`: expected a duration such as \"250ms\", found \"5 sec\": unknown unit ` sec`; \
         did you mean `s`?",
        ],
    );
    check(
        "END",
        "idle_timeout = 5\n",
        &["c.toml:8: service \"app\": `idle_timeout`: expected a duration such as \"250ms\", found integer 5"],
    );
    check(
        "END",
        "max_in_flight = 0\n",
        &["c.toml:8: service \"app\": `max_in_flight`: must be 1 to 4294967295, found 0"],
    );
    check(
        "END",
        "[[service]]\nname = \"app\"\nendpoints = [\"10.0.0.7:80\"]\n",
        &["c.toml:9: service \"app\": the name \"app\" is taken since line 6; give each its own"],
    );
    check(
        "bind = \"127.0.0.1:8000\"\n",
        "",
        &["c.toml:1: listener \"front\": `bind` is missing; add for example `bind = \"127.0.0.1:8080\"`"],
    );
    check(
        "127.0.0.1:8000",
        "8000",
        &["c.toml:3: listener \"front\": `bind`: expected an address such as \"127.0.0.1:8080\", \"[::1]:8080\" or \
         \"unix:/run/shop.sock\", found \"8000\""],
    );
    check(
        "service = \"app\"",
        "service = \"apq\"",
        &["c.toml:4: listener \"front\": `service`: there is no service \"apq\"; did you mean `app`?"],
    );
    check("[[listener]]", "[listener]", &["c.toml:1: `listener`: write [[listener]]"]);
    check("[[listener]]", "[[listener", &["c.toml:1: not TOML: unclosed array table, expected `]]`"]);
    check(
        "service = \"app\"",
        "service = \"app\"\nmtls = \"strct\"",
        &["c.toml:5: listener \"front\": `mtls`: unknown value \"strct\"; did you mean `strict`?"],
    );
    check(
        "service = \"app\"",
        "service = \"app\"\nmtls = \"strict\"",
        &[
            "c.toml:5: listener \"front\": `mtls`: \"strict\" needs an identity; add `identity = { files = \"DIR\" }` to [workload]",
        ],
    );
    check(
        "END",
        "[mesh]\ntrust_domain = \"t\"\n[[policy]]\nname = \"p\"\nlistener = \"front\"\nallow = [{ from = [\"web\"] }]\n",
        &["c.toml:13: policy \"p\": `allow[0].from`: cannot be enforced: listener \"front\" takes clients that prove \
         no identity; set `mtls = \"strict\"` there"],
    );
    check(
        "service = \"app\"\n",
        "[[route]]\nhosts = [\"a\"]\nto = [{ service = \"app\", weight = 0 }]\n",
        &[
            "c.toml:6: route \"a\": `to`: the weights sum to 0, so no request could go anywhere; give at least one service a weight \
         above 0",
        ],
    );
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_file() {
    check(
        "service = \"app\"\n[[service]]",
        "servise = \"app\"\nmtls = \"yes\"\n[[service]]\nballance = \"random\"",
        &[
            "c.toml:4: listener \"front\": unknown key `servise`; did you mean `service`?",
            "c.toml:5: listener \"front\": `mtls`: unknown value \"yes\"; expected `off` or `strict`",
            "c.toml:7: service \"app\": unknown key `ballance`; did you mean `balance`?",
        ],
    );
}

#[test]
fn a_file_that_is_not_there_is_a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    for words in [&["check", "none.toml"][..], &["run", "-c", "none.toml"], &["stop", "-c", "none.toml"]] {
        let said = run_in(folder.path(), words);
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert_eq!(said.error, "none.toml: cannot be read: No such file or directory (os error 2)\n");
    }
    assert_eq!(run_in(folder.path(), &["check", "."]).error, ".: cannot be read: Is a directory (os error 21)\n");
}

#[test]
fn run_refuses_what_check_refuses_with_the_same_words() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.toml"), GOOD.replace("bind", "bin")).unwrap();
    let [checked, run] = [&["check", "c.toml"][..], &["run", "-c", "c.toml"]].map(|words| run_in(folder.path(), words));
    assert!(checked.error.contains("unknown key `bin`; did you mean `bind`?"), "{}", checked.error);
    assert_eq!((run.code, run.error), (Some(2), checked.error));
}

#[test]
fn check_of_a_good_config_sums_it_up_and_says_what_the_machine_grants() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.toml"), GOOD).unwrap();
    let said = run_in(folder.path(), &["check", "c.toml"]);
    assert_eq!((said.code, said.error.as_str()), (Some(0), ""), "{said:?}");
    let starts =
        ["c.toml: good", "  workload ", "  listeners   front on 127.0.0.1:8000", "  services    1 with 1 endpoints"];
    let grants = ["  driver ", "  workers ", "  descriptors ", "  locked "];
    for start in starts.iter().chain(&grants) {
        assert!(said.out.lines().any(|line| line.starts_with(start)), "no line `{start}` in\n{}", said.out);
    }
}

// ---- identities that cannot be used ----

/// A folder with a config that names the identity in `svid`, and these files there.
fn workload(svid: &Svid) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = identity("web") + &forwarding(ports::free(), &[ports::free()], "mtls = \"strict\"", "");
    fs::write(folder.path().join("c.toml"), config).unwrap();
    svid.write(&folder.path().join("svid"));
    folder
}

/// `ringmesh check` refuses the identity in this folder with this line; `…` stands for what differs from run to run.
#[track_caller]
fn check_identity(folder: &TempDir, expected: &str) {
    for words in [&["check", "c.toml"][..], &["run", "-c", "c.toml"]] {
        let said = run_in(folder.path(), words);
        let (start, end) = expected.split_once('…').unwrap_or((expected, ""));
        let line = said.error.trim_end();
        assert!(line.starts_with(start) && line.ends_with(end), "{words:?} says\n{line}\nbut expected was\n{expected}");
        assert_eq!((said.code, line.lines().count()), (Some(2), 1), "{words:?} {said:?}");
    }
}

#[test]
fn an_identity_whose_files_are_missing_is_refused_with_the_command_that_writes_them() {
    let folder = workload(&Authority::new(DOMAIN).svid("web"));
    for name in ["svid.pem", "svid.key", "bundle.pem"] {
        let (file, aside) = (folder.path().join("svid").join(name), folder.path().join("aside"));
        fs::rename(&file, &aside).unwrap();
        let expected = format!(
            "c.toml:5: [workload]: `identity`: svid/{name} is missing; `ringmesh ca issue --ca CA --out svid NAME` writes it"
        );
        check_identity(&folder, &expected);
        fs::rename(&aside, &file).unwrap();
    }
    assert_eq!(run_in(folder.path(), &["check", "c.toml"]).code, Some(0));
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let folder = workload(&Authority::new(DOMAIN).svid("web"));
    for mode in [0o640, 0o604, 0o666] {
        fs::set_permissions(folder.path().join("svid/svid.key"), fs::Permissions::from_mode(mode)).unwrap();
        let expected = format!(
            "c.toml:5: [workload]: `identity`: svid/svid.key can be read by others (mode {mode:04o}); run: chmod 600 svid/svid.key"
        );
        check_identity(&folder, &expected);
    }
    fs::set_permissions(folder.path().join("svid/svid.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(run_in(folder.path(), &["check", "c.toml"]).code, Some(0));
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_with_the_reason() {
    let authority = Authority::new(DOMAIN);
    let (web, other) = (authority.svid("web"), authority.svid("web"));
    let web_id = authority.id("web");
    let strange = Authority::new(DOMAIN).svid("web");
    let cases = [
        (
            authority.leaf(&[&web_id], Validity::Expired),
            "`identity`: certificate 1 of svid/svid.pem expired at …; issue a new one",
        ),
        (
            authority.leaf(&[&web_id], Validity::Later),
            "`identity`: certificate 1 of svid/svid.pem is not valid before …",
        ),
        (
            Svid { key: other.key, ..web.clone() },
            "`identity`: the key in svid/svid.key does not belong to the certificate in svid/svid.pem; issue or copy both again",
        ),
        (
            Svid { bundle: strange.bundle.clone(), ..web.clone() },
            "`identity`: no certificate in svid/bundle.pem signed the chain in svid/svid.pem …; both must come from one authority",
        ),
        (
            authority.leaf(&[], Validity::Now),
            "`identity`: the certificate in svid/svid.pem has no URI name; an SVID has exactly one, spiffe://TRUST-DOMAIN/PATH",
        ),
        (
            authority.leaf(&[&web_id, "spiffe://mesh.test/b"], Validity::Now),
            "`identity`: the certificate in svid/svid.pem has 2 URI names (spiffe://mesh.test/ns/default/sa/web, \
             spiffe://mesh.test/b); an SVID has exactly one",
        ),
        (
            authority.leaf(&["https://mesh.test/web"], Validity::Now),
            "`identity`: the URI name `https://mesh.test/web` in svid/svid.pem is no SPIFFE ID: …",
        ),
        (
            authority.svid("checkout"),
            "`identity`: the SVID is that of spiffe://mesh.test/ns/default/sa/checkout, but this is \
             spiffe://mesh.test/ns/default/sa/web; issue the right one, or set `id` in [workload]",
        ),
        (
            Authority::new("elsewhere.test").svid("web"),
            "`identity`: the SVID is that of spiffe://elsewhere.test/ns/default/sa/web, but this is \
             spiffe://mesh.test/ns/default/sa/web; issue the right one, or set `id` in [workload]",
        ),
        (
            Svid { chain: "no PEM at all\n".to_owned(), ..web.clone() },
            "`identity`: svid/svid.pem holds no certificate; a section `-----BEGIN CERTIFICATE-----` is expected",
        ),
        (
            Svid { key: web.chain.clone(), ..web },
            "`identity`: svid/svid.key holds no private key; a section `-----BEGIN PRIVATE KEY-----` (PKCS#8, not encrypted) is \
             expected",
        ),
    ];
    for (svid, expected) in cases {
        check_identity(&workload(&svid), &format!("c.toml:5: [workload]: {expected}"));
    }
}

// ---- what the machine does not give ----

#[test]
fn a_port_in_use_names_its_owner() {
    let ours = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = ours.local_addr().unwrap();
    let admin_taken = format!("[admin]\nbind = \"{taken}\"\n");
    let listener_taken = forwarding(taken, &[ports::free()], "", "");
    let owner = format!("(pid {})", std::process::id());
    let no_admin = format!("[admin]\nbind = \"off\"\n{listener_taken}");
    for config in [no_admin, admin_taken + &forwarding(ports::free(), &[ports::free()], "", "")] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("c.toml"), &config).unwrap();
        let said = run_in(folder.path(), &["run", "-c", "c.toml"]);
        assert_eq!(said.code, Some(1), "{config}{said:?}");
        let last = said.error.trim_end().lines().last().unwrap();
        assert!(last.contains(&format!("{taken} is in use by `mesh")) && last.ends_with(&owner), "no {owner}: {last}");
    }
}

#[test]
fn the_admin_port_of_a_neighbour_ends_a_proxy_that_names_it_and_is_told_by_one_that_does_not() {
    let port = "127.0.0.1:15021";
    // Another proxy on this machine may have it already, which is as good.
    let _ours = TcpListener::bind(port);
    let folder = tempfile::tempdir().unwrap();
    let config = forwarding(ports::free(), &[ports::free()], "", "");
    fs::write(folder.path().join("named.toml"), format!("[admin]\nbind = \"{port}\"\n{config}")).unwrap();
    fs::write(folder.path().join("default.toml"), &config).unwrap();
    let named = run_in(folder.path(), &["run", "-c", "named.toml"]);
    assert_eq!(named.code, Some(1), "{named:?}");
    assert!(named.error.contains(&format!("[admin] bind: {port} is in use")), "{named:?}");
    for (file, expected) in [("named.toml", "it does not start"), ("default.toml", "it runs without admin pages")] {
        let said = run_in(folder.path(), &["check", file]);
        let line = said.out.lines().find(|line| line.trim_start().starts_with("admin ")).expect(&said.out);
        assert!(line.contains(&format!("{port} is in use by ")) && line.contains(expected), "{line}");
    }

    let directory = folder.path().join("run");
    let directory = directory.to_str().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    command.args(["run", "-c", "default.toml", "--runtime-dir", directory]).current_dir(folder.path());
    let mut proxy = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let status = ringmesh_tests::eventually("it says why it has no pages", || {
        let said = run_in(folder.path(), &["status", "--runtime-dir", directory]);
        said.out.contains("there are no admin pages").then_some(said.out)
    });
    assert!(status.contains(&format!("{port} is in use by ")), "{status}");
    assert_eq!(run_in(folder.path(), &["stop", "--runtime-dir", directory]).code, Some(0));
    proxy.wait().unwrap();
}

#[test]
fn a_place_that_cannot_be_used_is_told_once_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good.toml"), "[admin]\nbind = \"off\"\n").unwrap();
    // A file lies where its folder should be.
    let run = run_in(folder.path(), &["run", "-c", "good.toml", "--runtime-dir", "good.toml/run"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.error.contains("choose another directory with --runtime-dir"), "{run:?}");
    assert_eq!(run.error.matches("os error").count(), 1, "told once: {run:?}");
    let shown = run_in(folder.path(), &["ca", "show", "nowhere"]);
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(shown.error.contains("cannot read nowhere: name a PEM file, or a directory of them"), "{shown:?}");
    // What is no folder hides what may be in it.
    let issued = run_in(folder.path(), &["ca", "issue", "--ca", "good.toml", "--out", "out", "web"]);
    assert!(issued.error.contains("good.toml/intermediate.pem"), "{issued:?}");
}

#[test]
fn status_and_stop_say_when_nothing_runs_and_stop_ends_what_does() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.toml"), GOOD).unwrap();
    for words in [&["status"][..], &["stop"], &["status", "-c", "c.toml"], &["stop", "-c", "c.toml"]] {
        let said = run_in(folder.path(), words);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{words:?}: {said:?}");
        let nothing = ["nothing runs in", "no proxy of this user runs; name one with -c FILE or --runtime-dir DIR"];
        assert!(nothing.iter().any(|words| said.error.contains(words)), "{words:?}: {said:?}");
    }

    let app = Service::saying("hello");
    on_both_drivers(|driver| {
        let (mut proxy, _) = proxy_to(driver, &[app.address()]);
        let directory = proxy.runtime_directory();
        let directory = directory.to_str().unwrap();
        let status = proxy.command(&["status", "--runtime-dir", directory, "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["control"]["pid"], proxy.control_pid());
        assert_eq!(status["dataplane"]["pid"], proxy.dataplane_pid());
        let running = status["dataplane"]["driver"].as_str().unwrap();
        assert!(running.starts_with(&driver.to_string()), "{running}");
        let stopped = proxy.command(&["stop", "--runtime-dir", directory]);
        assert_eq!(String::from_utf8_lossy(&stopped.stdout), format!("stopped {directory}\n"));
        assert_eq!(proxy.wait(ringmesh_tests::DEADLINE).code(), Some(0));
        assert!(proxy.dataplane_pids().is_empty());
    });
}

// ---- help, completions, colour ----

#[test]
fn a_wrong_command_line_is_exit_code_2_and_says_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["chekc"], "a similar subcommand exists: 'check'"),
        (&["check"], "<FILE>"),
        (&["run"], "--config <FILE>"),
        (&["run", "-c", "x", "--log-format", "xml"], "[possible values: text, json]"),
        (&["stop", "--timeout", "5 sec"], "unknown unit ` sec`"),
        (&["ca"], "Usage: ringmesh ca <COMMAND>"),
    ];
    for (words, right) in cases {
        let said = run_in(folder.path(), words);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{words:?}: {said:?}");
        assert!(said.error.contains(right), "{words:?} does not say `{right}`:\n{}", said.error);
    }
}

#[test]
fn help_of_every_command_teaches_by_examples_and_names_its_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = run_in(folder.path(), &["--help"]);
    assert_eq!(whole.code, Some(0));
    let commands = whole.out.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() >= 7 && !commands.contains(&"dataplane"), "{commands:?}");
    for command in commands.iter().filter(|command| **command != "help") {
        let said = run_in(folder.path(), &[command, "--help"]);
        assert_eq!((said.code, said.error.as_str()), (Some(0), ""));
        let examples =
            said.out.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("no examples of {command}:\n{}", said.out));
        let example = format!("ringmesh {command}");
        assert!(examples.contains(&example), "{command}: {examples}");
        let exits = ["run", "check", "status", "stop"].contains(command);
        assert!(!exits || said.out.contains("Exit codes:\n  0  "), "{command} names no exit codes");
        assert!(said.out.lines().all(|line| line.chars().count() <= 100), "{command} is too wide:\n{}", said.out);
    }
    let version = run_in(folder.path(), &["--version"]);
    assert_eq!(version.out, format!("ringmesh {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_of_bash_complete_and_those_of_zsh_and_fish_name_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let scripts = ["bash", "zsh", "fish"].map(|shell| run_in(folder.path(), &["completions", shell]));
    for script in &scripts {
        assert_eq!((script.code, script.error.as_str()), (Some(0), ""));
        for command in ["run", "check", "status", "stop", "demo", "completions"] {
            assert!(script.out.contains(command), "no {command} in\n{}", script.out);
        }
        assert!(!script.out.contains("dataplane "), "what is hidden in the help is hidden here");
    }
    assert!(scripts[1].out.starts_with("#compdef ringmesh\n"));
    assert!(scripts[2].out.contains("complete -c ringmesh "));
    fs::write(folder.path().join("ringmesh.bash"), &scripts[0].out).unwrap();
    let ask = "source ringmesh.bash; COMP_WORDS=(ringmesh st); COMP_CWORD=1; _ringmesh ringmesh st ringmesh; \
               printf '%s ' \"${COMPREPLY[@]}\"";
    let bash = Command::new("bash").args(["-eu", "-c", ask]).current_dir(folder.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&bash.stdout), "status stop ", "{}", String::from_utf8_lossy(&bash.stderr));
}

#[test]
fn there_is_colour_on_a_terminal_and_nowhere_else() {
    let app = Service::saying("hello");
    let (proxy, _) = proxy_to(Driver::Epoll, &[app.address()]);
    let directory = proxy.runtime_directory();
    let directory = directory.to_str().unwrap();
    let commands: [&[&str]; 3] = [&["status", "--runtime-dir", directory], &["--help"], &["chekc"]];
    for words in commands {
        let piped = run_in(proxy.folder(), words);
        assert!(!piped.out.contains('\x1b') && !piped.error.contains('\x1b'), "{words:?}: {piped:?}");
        // `script` runs it on a terminal of its own.
        let line = format!("{RINGMESH} {}", words.join(" "));
        let on_terminal = |no_colour: &str| {
            let mut command = Command::new("script");
            command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
            command.env("TERM", "xterm").env("NO_COLOR", no_colour);
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        let shown = on_terminal("");
        assert!(shown.contains("\x1b["), "{words:?} without colour on a terminal:\n{shown}");
        let shown = on_terminal("1");
        assert!(!shown.contains("\x1b[3") && !shown.contains("\x1b[1m"), "{words:?} in spite of NO_COLOR:\n{shown:?}");
    }
    let log = proxy.log();
    assert!(!log.is_empty() && !log.contains('\x1b'), "{log}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.toml"), forwarding("127.0.0.1:1".parse().unwrap(), &[app.address()], "", ""))
        .unwrap();
    let text = run_in(folder.path(), &["run", "-c", "c.toml", "--log-format", "text", "--runtime-dir", "/proc/none"]);
    assert!(text.code == Some(1) && !text.error.contains('\x1b'), "{text:?}");
}
