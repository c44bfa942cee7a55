//! Resolves endpoint names, again and again, as their TTL says. The last answer is kept until there is a better one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::{ResolveError, TokioResolver};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::state;

/// Shortest time between two questions for one name, whatever its TTL: a TTL of 0 is common and must not become a flood.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time between two questions: an address that moved in spite of its TTL, or an edit of /etc/hosts (which has
/// none), is found in a minute.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// Longest pause after a question that failed.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Bound on one question, all servers and tries taken together.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Most addresses of one name that are used. The answer's sender chooses how many there are, so we choose the bound.
pub const MAX_ADDRESSES: usize = 1024;

/// What is known of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its addresses, sorted, each once; empty if it never resolved.
    pub addresses: Vec<IpAddr>,
    /// When they came.
    pub answered_at: Option<u64>,
    /// Why the last question failed.
    #[serde(skip)]
    pub error: Option<String>,
    /// Whether a question was answered or failed since this process began.
    #[serde(skip)]
    pub asked: bool,
}

/// Answers by host name.
pub type Answers = BTreeMap<String, Answer>;

enum News {
    Answered(Vec<IpAddr>),
    Failed(String),
}

/// The names that are being resolved.
pub struct Names {
    answers: Answers,
    tasks: BTreeMap<String, JoinHandle<()>>,
    tell: mpsc::UnboundedSender<(String, News)>,
    news: mpsc::UnboundedReceiver<(String, News)>,
}

impl Names {
    /// Begins with answers that an earlier process has kept.
    pub fn new(kept: Answers) -> Self {
        let (tell, news) = mpsc::unbounded_channel();
        Self { answers: kept, tasks: BTreeMap::new(), tell, news }
    }

    /// Resolves these names from now on, and no others.
    pub fn resolve(&mut self, hosts: &BTreeSet<String>) {
        self.answers.retain(|host, _| hosts.contains(host));
        self.tasks.retain(|host, task| {
            let wanted = hosts.contains(host);
            if !wanted {
                task.abort();
            }
            wanted
        });
        for host in hosts {
            self.answers.entry(host.clone()).or_default();
            let start = || tokio::spawn(ask_on(host.clone(), None, self.tell.clone()));
            self.tasks.entry(host.clone()).or_insert_with(start);
        }
    }

    /// What is known.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Whether some name has no answer at all yet, and its first question is still open.
    pub fn is_waiting(&self) -> bool {
        self.answers.values().any(|answer| answer.addresses.is_empty() && !answer.asked)
    }

    /// Waits for news and says whether addresses have changed. May be dropped at any time without loss.
    pub async fn changed(&mut self) -> bool {
        let (host, news) = self.news.recv().await.expect("we hold a sender ourselves");
        self.learn(&host, news)
    }

    fn learn(&mut self, host: &str, news: News) -> bool {
        // News of a name that is not wanted any more may still have been on its way.
        let Some(answer) = self.answers.get_mut(host) else { return false };
        answer.asked = true;
        match news {
            News::Answered(addresses) => {
                answer.answered_at = Some(state::now());
                answer.error = None;
                if answer.addresses == addresses {
                    return false;
                }
                tracing::info!(target: "ringmesh::dns", name = host, ?addresses, "resolved");
                answer.addresses = addresses;
                true
            }
            News::Failed(error) => {
                if answer.error.as_ref() != Some(&error) {
                    tracing::warn!(target: "ringmesh::dns", name = host, error, kept = answer.addresses.len(), "not resolved");
                }
                answer.error = Some(error);
                false
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

/// Asks for one name for ever: this resolver, or else the one that this machine is set up with.
async fn ask_on(host: String, mut resolver: Option<Resolver>, tell: mpsc::UnboundedSender<(String, News)>) {
    let mut retry = MIN_INTERVAL;
    loop {
        let (news, pause) = match ask(&host, &mut resolver).await {
            Ok((addresses, valid)) => {
                retry = MIN_INTERVAL;
                (News::Answered(addresses), valid.clamp(MIN_INTERVAL, MAX_INTERVAL))
            }
            Err(error) => {
                let pause = retry;
                retry = (retry * 2).min(MAX_RETRY);
                (News::Failed(error), pause)
            }
        };
        if tell.send((host.clone(), news)).is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Asks once: the addresses, and how long they are valid.
async fn ask(host: &str, resolver: &mut Option<Resolver>) -> Result<(Vec<IpAddr>, Duration), String> {
    if resolver.as_ref().is_none_or(Resolver::is_outdated) {
        *resolver = Some(Resolver::of_this_machine().map_err(|error| format!("/etc/resolv.conf: {error}"))?);
    }
    let resolver = &resolver.as_ref().expect("just made").resolver;
    let answer = match tokio::time::timeout(QUESTION_TIMEOUT, resolver.lookup_ip(host)).await {
        Err(_) => return Err(format!("no answer in {} s", QUESTION_TIMEOUT.as_secs())),
        Ok(Err(error)) if error.is_nx_domain() => return Err("there is no such name".to_owned()),
        Ok(Err(error)) if error.is_no_records_found() => return Err("the name has no address".to_owned()),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(answer)) => answer,
    };
    let addresses: BTreeSet<IpAddr> = answer.iter().collect();
    if addresses.is_empty() {
        return Err("the name has no address".to_owned());
    }
    let valid = answer.valid_until().saturating_duration_since(std::time::Instant::now());
    Ok((addresses.into_iter().take(MAX_ADDRESSES).collect(), valid))
}

/// What the resolver was made from: it reads them once, so it is made anew when they change.
#[derive(PartialEq, Eq)]
struct Files([Option<SystemTime>; 2]);

impl Files {
    fn look() -> Self {
        let changed = |path| fs::metadata(path).and_then(|file| file.modified()).ok();
        Self([changed("/etc/resolv.conf"), changed("/etc/hosts")])
    }
}

struct Resolver {
    resolver: TokioResolver,
    /// None: made from no file.
    files: Option<Files>,
}

impl Resolver {
    fn of_this_machine() -> Result<Self, ResolveError> {
        let files = Files::look();
        let (config, options) = match files.0[0] {
            Some(_) => hickory_resolver::system_conf::read_system_conf()?,
            // Without it the C library asks a server on this machine; names in /etc/hosts need none.
            None => (ResolverConfig::new(), ResolverOpts::default()),
        };
        Ok(Self { files: Some(files), ..Self::new(config, options) })
    }

    fn new(config: ResolverConfig, mut options: ResolverOpts) -> Self {
        options.cache_size = 0;
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        let mut builder = TokioResolver::builder_with_config(config, TokioConnectionProvider::default());
        *builder.options_mut() = options;
        Self { resolver: builder.build(), files: None }
    }

    fn is_outdated(&self) -> bool {
        self.files.as_ref().is_some_and(|files| *files != Files::look())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
    use std::time::Instant;

    use hickory_resolver::config::NameServerConfigGroup;

    use super::*;

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split(' ').map(|address| address.parse().expect("an address")).collect()
    }

    fn names(hosts: &[&str]) -> Names {
        let mut names = Names::new(Answers::new());
        names.answers = hosts.iter().map(|host| ((*host).to_owned(), Answer::default())).collect();
        names
    }

    #[test]
    fn the_last_answer_is_kept_when_a_name_stops_resolving() {
        let mut names = names(&["payments"]);
        assert!(names.is_waiting());
        assert!(names.learn("payments", News::Answered(addresses("10.0.0.7 10.0.0.8"))));
        assert!(!names.learn("payments", News::Failed("no answer".to_owned())));
        let answer = &names.answers()["payments"];
        assert_eq!(answer.addresses, addresses("10.0.0.7 10.0.0.8"));
        assert_eq!(answer.error.as_deref(), Some("no answer"));
        assert!(!names.learn("payments", News::Answered(addresses("10.0.0.7 10.0.0.8"))), "nothing is new");
        assert_eq!(names.answers()["payments"].error, None);
    }

    #[test]
    fn a_name_that_never_resolved_is_not_waited_for_once_it_failed() {
        let mut names = names(&["payments"]);
        assert!(!names.learn("payments", News::Failed("no such name".to_owned())));
        assert!(!names.is_waiting());
        assert!(names.answers()["payments"].addresses.is_empty());
    }

    #[test]
    fn news_of_a_name_that_is_not_wanted_any_more_is_dropped() {
        let mut names = names(&["payments"]);
        assert!(!names.learn("stock", News::Answered(addresses("10.0.0.7"))));
        assert_eq!(names.answers().len(), 1);
    }

    #[tokio::test]
    async fn localhost_resolves_without_a_server() {
        let mut names = Names::new(Answers::new());
        names.resolve(&BTreeSet::from(["localhost".to_owned()]));
        let deadline = Duration::from_secs(10);
        assert!(tokio::time::timeout(deadline, names.changed()).await.expect("an answer in time"));
        assert!(names.answers()["localhost"].addresses.iter().all(IpAddr::is_loopback));
    }

    /// The answer to a question (RFC 1035 section 4): this address, valid for so many seconds.
    fn reply(question: &[u8], address: Ipv4Addr, ttl: u32) -> Vec<u8> {
        let name = question[12..].iter().position(|byte| *byte == 0).expect("a name ends");
        let asked = &question[12..12 + name + 5];
        let header = [&question[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
        let record = [&[0xc0, 12, 0, 1, 0, 1][..], &ttl.to_be_bytes(), &[0, 4], &address.octets()].concat();
        [&header, asked, &record].concat()
    }

    /// A name server that gives these answers, one a question, says when it was asked, and then is silent for ever.
    fn name_server(answers: &'static [(Ipv4Addr, u32)]) -> (SocketAddr, std::thread::JoinHandle<Vec<Instant>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let address = socket.local_addr().expect("an address");
        let serving = move || {
            let answer = |(address, ttl): &(Ipv4Addr, u32)| {
                let mut question = [0; 512];
                let (len, from) = socket.recv_from(&mut question).expect("a question in time");
                let at = Instant::now();
                socket.send_to(&reply(&question[..len], *address, *ttl), from).expect("a reply");
                at
            };
            answers.iter().map(answer).collect()
        };
        (address, std::thread::spawn(serving))
    }

    #[tokio::test]
    async fn a_name_is_asked_for_again_when_its_ttl_says_so_and_silence_leaves_the_last_answer() {
        const OLD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
        const NEW: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 8);
        const TTL: u32 = 3;
        // A TTL of 0 is no flood, and what has not changed is no news.
        let (server, asked) = name_server(&[(OLD, TTL), (OLD, 0), (NEW, 1)]);
        let servers = NameServerConfigGroup::from_ips_clear(&[server.ip()], server.port(), true);
        let mut options = ResolverOpts::default();
        (options.timeout, options.attempts) = (Duration::from_millis(200), 0);
        let resolver = Resolver::new(ResolverConfig::from_parts(None, Vec::new(), servers), options);

        let mut names = names(&["payments.test."]);
        let asking = tokio::spawn(ask_on("payments.test.".to_owned(), Some(resolver), names.tell.clone()));
        let mut changes = Vec::new();
        let until_it_fails = async {
            while names.answers()["payments.test."].error.is_none() {
                if names.changed().await {
                    changes.push(names.answers()["payments.test."].addresses.clone());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), until_it_fails).await.expect("all answers, and a failure");
        asking.abort();

        assert_eq!(changes, [[IpAddr::V4(OLD)], [IpAddr::V4(NEW)]]);
        assert_eq!(names.answers()["payments.test."].addresses, [IpAddr::V4(NEW)], "kept in spite of the failure");
        let asked = asked.join().expect("three questions");
        let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // The resolver's clock starts with the answer, and ours with the question.
        let tolerance = Duration::from_millis(100);
        for (pause, ttl) in pauses.iter().zip([Duration::from_secs(TTL.into()), MIN_INTERVAL]) {
            assert!(*pause + tolerance >= ttl && *pause < ttl * 5, "asked after {pauses:?}");
        }
    }
}
