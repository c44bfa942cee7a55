//! The parent commit, built beside this tree: what to compare with where the baseline's counts say nothing.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::baseline::{self, Baseline};
use crate::callgrind::PROGRAM;
use crate::machine::Machine;
use crate::programs::{Build, cargo};

/// A commit to compare with.
pub struct Parent {
    /// Which one, in words.
    pub name: String,
    /// The baseline it has, if this program understands it.
    pub baseline: Option<Baseline>,
    commit: String,
}

/// The commit that this tree is a change of: the last one if files differ from it, else the one before. In the inner
/// result, why there is none.
///
/// # Errors
/// If git cannot be run.
pub fn find(machine: &Machine) -> anyhow::Result<Result<Parent, String>> {
    let (revision, words) =
        if machine.modified { ("HEAD", "the commit that this tree changes") } else { ("HEAD^", "the parent commit") };
    let Some(commit) = git(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])? else {
        return Ok(Err("there is no parent commit here (a copy without history)".to_owned()));
    };
    let knows = git(&["cat-file", "-e", &format!("{commit}:bench/src/bin/parts.rs")])?.is_some();
    if !knows {
        return Ok(Err(format!("{words} cannot be counted: it has no {PROGRAM}")));
    }
    let baseline = git(&["show", &format!("{commit}:bench/baseline.json")])?;
    let baseline = baseline.and_then(|text| Baseline::parse(&text).ok());
    let short = commit.get(..10).unwrap_or(&commit);
    Ok(Ok(Parent { name: format!("{words}, {short}"), baseline, commit }))
}

/// What git says, without the line's end; nothing, if it refuses.
fn git(words: &[&str]) -> anyhow::Result<Option<String>> {
    let output = Command::new("git").args(words).current_dir(baseline::tree()).output();
    let output = output.context("git is missing: apt-get install git")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned()))
}

impl Parent {
    /// Builds it as `build` was; the program that runs its parts.
    ///
    /// It has its own target folder below this tree's. What this build has made of other crates is copied there, so that
    /// only the mesh's own are built.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn build(&self, build: &Build) -> anyhow::Result<PathBuf> {
        let place = build.folder().parent().context("a build has a target folder")?.join("gate");
        let (tree, target) = (place.join("tree"), place.join("target"));
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        fs::create_dir_all(&tree)?;
        self.extract(&tree)?;
        let built = target.join(build.profile());
        for folder in [".fingerprint", "build", "deps"] {
            copy_foreign(&build.folder().join(folder), &built.join(folder))?;
        }
        let status = cargo()
            .args(["build", "--quiet", "--locked", "--workspace", "--profile", build.profile(), "--bin", PROGRAM])
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(&tree)
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            bail!("{} cannot be built, {status}", self.name);
        }
        Ok(built.join(PROGRAM))
    }

    fn extract(&self, tree: &Path) -> anyhow::Result<()> {
        let mut archive = Command::new("git")
            .args(["archive", "--format=tar", &self.commit])
            .current_dir(baseline::tree())
            .stdout(Stdio::piped())
            .spawn()?;
        let tar = archive.stdout.take().context("a pipe was asked for")?;
        let unpacked = Command::new("tar").arg("-x").current_dir(tree).stdin(tar).status().context("cannot run tar")?;
        if !archive.wait()?.success() || !unpacked.success() {
            bail!("{} cannot be unpacked", self.name);
        }
        Ok(())
    }
}

/// Copies what belongs to other crates and is not there yet, programs left out. Times stay: cargo tells by them what is up
/// to date.
fn copy_foreign(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_library = name.starts_with("lib") || from.file_name().is_none_or(|folder| folder != "deps");
        if name.contains("ringmesh") || !is_library || copy.exists() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_foreign(&source, &copy)?;
        } else {
            fs::copy(&source, &copy)?;
            let times = FileTimes::new().set_modified(entry.metadata()?.modified()?);
            File::options().write(true).open(&copy)?.set_times(times)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_their_times_and_leave_our_own_crates_out() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for folder in ["build", "deps"] {
            fs::create_dir_all(from.join(folder)).unwrap();
        }
        for name in ["libserde.rlib", "libringmesh_ring.rlib", "build/output", "deps/micro"] {
            fs::write(from.join(name), name).unwrap();
        }
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let times = FileTimes::new().set_modified(old);
        File::options().write(true).open(from.join("libserde.rlib")).unwrap().set_times(times).unwrap();
        copy_foreign(&from, &to).unwrap();
        assert_eq!(fs::metadata(to.join("libserde.rlib")).unwrap().modified().unwrap(), old);
        assert!(to.join("build/output").is_file() && !to.join("libringmesh_ring.rlib").exists());
        assert!(!to.join("deps/micro").exists());
    }
}
