//! Other people's proxies, as tests put them beside ours.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::wait::eventually;

/// HAProxy, nginx or Envoy with a config of its own. Dropped, it ends.
pub struct Program {
    child: Child,
    folder: TempDir,
}

impl Program {
    /// HAProxy with these `frontend`, `backend` and `listen` sections, which listens at `address`.
    ///
    /// # Panics
    /// If it is not installed, or does not listen.
    #[track_caller]
    pub fn haproxy(address: SocketAddr, sections: &str) -> Self {
        let config = format!(
            "global\n  maxconn 100\ndefaults\n  timeout connect 5s\n  timeout client 10s\n  timeout server 10s\n{sections}\n"
        );
        let debian = "Debian: apt-get install haproxy";
        Self::start(Path::new("haproxy"), debian, &["-db", "-f"], "config", &config, address)
    }

    /// nginx with these `http` and `stream` sections, which listens at `address`.
    ///
    /// # Panics
    /// If it is not installed, or does not listen.
    #[track_caller]
    pub fn nginx(address: SocketAddr, sections: &str) -> Self {
        let config = format!(
            "daemon off; master_process off; pid DIR/nginx.pid; error_log stderr;\n\
             load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nevents {{}}\n{sections}\n"
        );
        let debian = "Debian: apt-get install nginx-light libnginx-mod-stream";
        Self::start(Path::new("nginx"), debian, &["-e", "stderr", "-c"], "config", &config, address)
    }

    /// nginx with these directives in its `http` section, which listens at `address`.
    ///
    /// # Panics
    /// If it is not installed, or does not listen.
    #[track_caller]
    pub fn nginx_http(address: SocketAddr, directives: &str) -> Self {
        // Where it keeps bodies unless told otherwise is root's.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|name| format!("{name}_temp_path DIR/{name};\n")).concat();
        Self::nginx(address, &format!("http {{ access_log off;\n{temporary}{directives}\n}}"))
    }

    /// Envoy, which is `program`, with this config in YAML, which listens at `address`.
    ///
    /// # Panics
    /// If it is not installed, or does not listen.
    #[track_caller]
    pub fn envoy(program: &Path, address: SocketAddr, config: &str) -> Self {
        let install = "./tests/run installs it beside the build";
        // Nobody takes its place while it runs. By the end of its file's name it knows that it is YAML.
        let words = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"];
        Self::start(program, install, &words, "config.yaml", config, address)
    }

    #[track_caller]
    fn start(program: &Path, install: &str, words: &[&str], file: &str, config: &str, address: SocketAddr) -> Self {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let folder = tempfile::Builder::new().prefix("ringmesh-").tempdir().expect("a temporary folder");
        let file = folder.path().join(file);
        let config = config.replace("DIR", &folder.path().display().to_string());
        fs::write(&file, config).expect("the folder is ours");
        let log = fs::File::create(folder.path().join("log")).expect("the folder is ours");
        let mut command = Command::new(program);
        command.args(words).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Debian keeps services out of ordinary users' paths.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}; {install}"));
        let mut program = Self { child, folder };
        eventually(&format!("{name} listens at {address}"), || {
            let ended = program.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{name} ended: {}", program.log());
            TcpStream::connect(address).ok()
        });
        program
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- its neighbour's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
