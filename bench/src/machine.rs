//! Where the figures come from: without that they say nothing.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::scenario;

/// The machine, the tree, and how busy the one and clean the other was.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The C library.
    pub libc: String,
    /// The compiler.
    pub rustc: String,
    /// The commit that was measured.
    pub commit: String,
    /// Whether files of the tree differ from it.
    pub modified: bool,
    /// The day, in UTC.
    pub date: String,
    /// Load average over a minute before the first turn.
    pub load_average: f64,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
        };
        Self {
            // Virtual machines often hide the model's name, but not its number.
            cpu: format!("{} (family {}, model {})", field("model name"), field("cpu family"), field("model\t")),
            cores: ringmesh_ring::affinity::allowed_cores().len(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            libc: says("getconf", &["GNU_LIBC_VERSION"]),
            rustc: says("rustc", &["--version"]),
            commit: says("git", &["rev-parse", "--short=10", "HEAD"]),
            modified: !says("git", &CHANGES).is_empty(),
            date: says("date", &["-u", "+%F"]),
            load_average: load_average(),
        }
    }
}

/// Names files that differ from the commit. What an earlier run has left is no change of what is measured.
const CHANGES: [&str; 6] =
    ["status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)bench/results"];

/// Memory that the kernel has for its own objects and for what is in TCP's buffers, of the whole machine.
pub fn kernel_kib() -> u64 {
    let word_after = |file: &str, line: &str, word: &str| -> Option<u64> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|candidate| candidate.starts_with(line))?;
        let mut words = line.split_whitespace().skip_while(|candidate| *candidate != word);
        words.nth(1)?.parse().ok()
    };
    let page_bytes: u64 = says("getconf", &["PAGESIZE"]).parse().unwrap_or(4096);
    let buffers = word_after("/proc/net/sockstat", "TCP:", "mem").unwrap_or(0) * page_bytes / 1024;
    word_after("/proc/meminfo", "Slab:", "Slab:").unwrap_or(0) + buffers
}

/// How many connections to this port are established, by their clients' ends.
pub fn established(address: SocketAddr) -> usize {
    let text = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let is_client = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        let remote_port = words.next().and_then(|remote| remote.rsplit_once(':'));
        remote_port.is_some_and(|(_, port)| u16::from_str_radix(port, 16) == Ok(address.port()))
            && words.next() == Some(ESTABLISHED)
    };
    text.lines().skip(1).filter(is_client).count()
}

/// The state's number in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// What a command says, in one line; nothing, if it is missing.
fn says(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).current_dir(scenario::folder()).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// The load average over a minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// The unit of times in `/proc`: fixed for programs whatever the kernel's own clock does (time(7), USER_HZ).
pub const TICKS_PER_SECOND: u32 = 100;

/// What a core has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreTime {
    /// For anybody.
    pub busy: Duration,
    /// Altogether, idle included.
    pub all: Duration,
}

/// What a core has done since the machine started.
pub fn core_time(core: usize) -> CoreTime {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let name = format!("cpu{core} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_default();
    // user nice system idle iowait irq softirq steal; the guests' time behind them is part of the user's.
    let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
    let duration = |ticks: u64| Duration::from_secs(ticks) / TICKS_PER_SECOND;
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    CoreTime { busy: duration(all - idle), all: duration(all) }
}
