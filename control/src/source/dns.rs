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
            let start = || tokio::spawn(ask_on(host.clone(), self.tell.clone()));
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

/// Asks for one name for ever.
async fn ask_on(host: String, tell: mpsc::UnboundedSender<(String, News)>) {
    let mut resolver = None;
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
    if resolver.as_ref().is_none_or(|resolver| resolver.files != Files::look()) {
        *resolver = Some(Resolver::new().map_err(|error| format!("/etc/resolv.conf: {error}"))?);
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
    files: Files,
}

impl Resolver {
    fn new() -> Result<Self, ResolveError> {
        let files = Files::look();
        let (config, mut options) = match files.0[0] {
            Some(_) => hickory_resolver::system_conf::read_system_conf()?,
            // Without it the C library asks a server on this machine; names in /etc/hosts need none.
            None => (ResolverConfig::new(), ResolverOpts::default()),
        };
        options.cache_size = 0;
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        let mut builder = TokioResolver::builder_with_config(config, TokioConnectionProvider::default());
        *builder.options_mut() = options;
        Ok(Self { resolver: builder.build(), files })
    }
}

#[cfg(test)]
mod tests {
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
}
