//! What the pages and the examples say is true: every config can be used, every command runs, every path is there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ringmesh_tests::certificates::{Authority, Validity};

use crate::support::RINGMESH;

/// Where the repository lies.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(page: &str) -> String {
    fs::read_to_string(repository().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// All example configs.
fn examples() -> Vec<PathBuf> {
    let files = fs::read_dir(repository().join("configs")).unwrap().map(|entry| entry.unwrap().path());
    let mut examples: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "toml")).collect();
    examples.sort();
    assert!(examples.len() >= 6, "{examples:?}");
    examples
}

#[track_caller]
fn assert_succeeded(what: &str, output: &Output) -> String {
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{said}{told}", output.status);
    said.into_owned()
}

#[track_caller]
fn assert_good(file: &Path) {
    let said =
        assert_succeeded(&file.display().to_string(), &Command::new(RINGMESH).arg("check").arg(file).output().unwrap());
    assert!(said.contains(": good\n") && said.contains("machine\n"), "{said}");
}

/// The SPIFFE ID that a config claims, and its trust domain.
fn claimed(config: &toml::Table) -> Option<(String, String)> {
    let workload = config.get("workload")?;
    workload.get("identity")?;
    let domain = config["mesh"]["trust_domain"].as_str().unwrap().to_owned();
    let text = |key: &str, default: &str| {
        workload.get(key).map_or(default.to_owned(), |value| value.as_str().unwrap().to_owned())
    };
    let by_name = format!("spiffe://{domain}/ns/{}/sa/{}", text("namespace", "default"), text("name", "proxy"));
    Some((text("id", &by_name), domain))
}

/// The certificates that its listeners show.
fn certificates(config: &toml::Table) -> Vec<toml::Table> {
    let listeners = config.get("listener").and_then(toml::Value::as_array).into_iter().flatten();
    let tls = listeners.filter_map(|listener| listener.get("tls")?.as_array()).flatten();
    tls.map(|files| files.as_table().unwrap().clone()).collect()
}

#[test]
fn every_example_config_can_be_used_with_an_identity_of_its_own() {
    for example in examples() {
        let text = fs::read_to_string(&example).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // The one thing that is changed: this machine may have an /etc/ringmesh of its own.
        let here = text.replace("\"/etc/ringmesh/", "\"");
        let config: toml::Table = here.parse().unwrap();
        if let Some((id, domain)) = claimed(&config) {
            let files = folder.path().join(config["workload"]["identity"]["files"].as_str().unwrap());
            assert!(files.starts_with(folder.path()), "{}: {}", example.display(), files.display());
            Authority::new(&domain).leaf(&[&id], Validity::Now).write(&files);
        }
        for files in certificates(&config) {
            let named = |key: &str| folder.path().join(files[key].as_str().unwrap());
            let certificate = Authority::new("public").server(&["shop.example"]);
            fs::create_dir_all(named("key").parent().unwrap()).unwrap();
            fs::write(named("certificate"), &certificate.chain).unwrap();
            fs::write(named("key"), &certificate.key).unwrap();
            fs::set_permissions(named("key"), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let file = folder.path().join(example.file_name().unwrap());
        fs::write(&file, here).unwrap();
        assert_good(&file);
    }
}

#[test]
fn python_reads_every_toml_file_and_block_as_toml_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = examples();
    for (number, block) in blocks(&read("README.md")).iter().filter(|block| block.language == "toml").enumerate() {
        let file = folder.path().join(format!("block-{number}.toml"));
        fs::write(&file, &block.text).unwrap();
        files.push(file);
    }
    // One that is not read as the same thing by both would be worse than one that is not read.
    let program = "import json, sys, tomllib\nprint(json.dumps([tomllib.load(open(f, 'rb')) for f in sys.argv[1:]]))";
    let output = Command::new("python3").args(["-c", program]).args(&files).output().unwrap();
    let said = assert_succeeded("python3 with tomllib (3.11 and later)", &output);
    let theirs: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    assert_eq!(theirs.len(), files.len());
    for (file, theirs) in files.iter().zip(theirs) {
        let ours: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
        assert_eq!(serde_json::to_value(ours).unwrap(), theirs, "{}", file.display());
    }
}

/// A fenced block of a page.
struct Block {
    language: String,
    text: String,
    /// The file that the line before it names as what it goes in.
    file: Option<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: String =
                lines.by_ref().take_while(|line| !line.starts_with("```")).map(|line| format!("{line}\n")).collect();
            let file = before.split('`').rfind(|word| word.ends_with(".toml") && !word.contains(' '));
            blocks.push(Block { language: language.to_owned(), text, file: file.map(str::to_owned) });
        } else if !line.is_empty() {
            before = line;
        }
    }
    blocks
}

/// A line of README as the test runs it. None: the run itself proves it.
fn substituted(line: &str) -> Option<String> {
    if line == "./tests/run" {
        return None;
    }
    // Built already, by the profile under test; a second cargo would wait for the one that runs this test.
    let line = line.replace("cargo run --release -- ", "ringmesh ");
    Some(match line.split(' ').any(|word| word == "demo") {
        true => line + " --duration 10s",
        false => line,
    })
}

#[test]
fn every_command_and_config_of_readme_does_what_it_says_in_the_order_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    symlink(RINGMESH, programs.join("ringmesh")).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());

    let (mut configs, mut ran) = (Vec::new(), 0);
    for block in blocks(&read("README.md")) {
        match block.language.as_str() {
            "toml" => {
                let name = block.file.unwrap_or_else(|| panic!("which file is this?\n{}", block.text));
                let file = folder.path().join(name);
                fs::write(&file, block.text).unwrap();
                configs.push(file);
            }
            "sh" => {
                let script: Vec<String> = block.text.lines().filter_map(substituted).collect();
                let output = Command::new("bash")
                    .args(["-euo", "pipefail", "-c", &script.join("\n")])
                    .current_dir(folder.path())
                    .env("PATH", &path)
                    .output()
                    .unwrap();
                assert_succeeded(&block.text, &output);
                ran += script.len();
            }
            // What a screen shows.
            "text" => {}
            other => panic!("a block in `{other}`, which no test runs:\n{}", block.text),
        }
    }
    configs.iter().for_each(|config| assert_good(config));
    assert!(ran >= 4 && !configs.is_empty(), "the page lost what this test reads: {ran} commands");
}

/// What a page claims to be in the repository: links, and code that looks like a path of ours.
fn paths(page: &str) -> Vec<String> {
    let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with('#')).map(str::to_owned);
    let code = page.split('`').skip(1).step_by(2);
    let ours = |word: &&str| {
        let looks = word.contains('/') || [".rs", ".md", ".toml"].iter().any(|end| word.ends_with(end));
        looks && !word.contains(char::is_whitespace) && !word.starts_with(['/', '$', '<'])
    };
    links.chain(code.filter(ours).map(str::to_owned)).collect()
}

#[test]
fn every_path_that_the_architecture_names_exists() {
    let repository = repository();
    for (page, at_least) in [("ARCHITECTURE.md", 30), ("README.md", 5)] {
        let text = read(page);
        // What README has its reader make is no part of the repository, and neither is what is served.
        let made: Vec<String> = blocks(&text).into_iter().filter_map(|block| block.file).collect();
        let mut without_blocks = String::new();
        let mut inside = false;
        for line in text.lines() {
            inside ^= line.starts_with("```");
            if !inside && !line.starts_with("```") {
                without_blocks += line;
                without_blocks.push('\n');
            }
        }
        let named = paths(&without_blocks);
        let missing: Vec<&String> = named
            .iter()
            // What a build makes is not there before it.
            .filter(|path| !made.contains(path) && !path.starts_with("target/") && !repository.join(path).exists())
            .collect();
        assert!(missing.is_empty(), "{page} names what is not there: {missing:?}");
        assert!(named.len() >= at_least, "{page} names paths in another way now: {named:?}");
    }
}

/// What systemd says about a unit, beside its exit code, which is 0 in spite of warnings.
fn verified(folder: &Path, name: &str, unit: &str) -> (bool, String) {
    fs::write(folder.join(name), unit).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", &format!("./{name}")]).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("systemd-analyze: {error}; apt-get install -y systemd"));
    let told = String::from_utf8_lossy(&output.stderr);
    // Units that ours waits for may have faults of their own.
    let ours: Vec<&str> = told.lines().filter(|line| line.contains(name.split('.').next().unwrap())).collect();
    (output.status.success(), ours.join("\n"))
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let entries = fs::read_dir(repository().join("configs")).unwrap().map(|entry| entry.unwrap().path());
    let units: Vec<_> = entries.filter(|file| file.extension().is_some_and(|end| end == "service")).collect();
    assert!(!units.is_empty());
    for file in units {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        // Nothing is installed where the tests run.
        let unit = text.replace("ExecStart=/usr/bin/ringmesh ", &format!("ExecStart={RINGMESH} "));
        assert_ne!(unit, text, "{name} starts something else");
        assert_eq!(verified(folder.path(), name, &unit), (true, String::new()), "{name}");
        let (_, said) = verified(folder.path(), name, &unit.replace("NoNewPrivileges", "NoNewPrivilege"));
        assert!(said.contains("NoNewPrivilege"), "it says what it does not know: {said:?}");
    }
}
