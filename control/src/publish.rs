//! What the data plane is told, and when: one change at a time, the whole snapshot first, then what differs.
//!
//! A snapshot that the data plane refuses, or that it does not survive, is taken back: what was live before goes on being
//! wanted, so that a data plane that is started anew gets something that works.

use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::delta::Delta;
use ringmesh_model::snapshot::Snapshot;
use ringmesh_model::wire::ToDataPlane;
use tokio::time::Instant;

/// How long a data plane may take to make a snapshot live before that is told as a problem. The largest take a second.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// How many data planes a snapshot may take with it before it is given up.
const MAX_DEATHS: u32 = 3;

/// What is sent and not answered yet.
struct Open {
    snapshot: Arc<Snapshot>,
    deadline: Instant,
}

/// What a change in the data plane's condition means for the configuration.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: an answer to a question that is not open any more.
    Nothing,
    /// This version is live, and the newest.
    Live(u64),
    /// This version is live, and a newer one waits.
    Overtaken(u64),
    /// This version was given up; what was live before goes on.
    TakenBack(u64),
}

/// Decides what to send.
pub struct Publisher {
    /// What should be live.
    wanted: Arc<Snapshot>,
    /// What was live last, in this data plane or the one before.
    live: Option<Arc<Snapshot>>,
    /// What the present data plane is known to have; None: it must get the whole snapshot.
    base: Option<Arc<Snapshot>>,
    /// The version that the present data plane needs no telling of: it has it.
    settled: u64,
    /// A version that nobody can be given.
    hopeless: u64,
    open: Option<Open>,
    /// A version, and how many data planes in a row died while it was open.
    deaths: (u64, u32),
    last_version: u64,
}

impl Publisher {
    /// Nothing is wanted yet, so there is nothing to send.
    pub fn new() -> Self {
        Self {
            wanted: Arc::new(Snapshot::default()),
            live: None,
            base: None,
            settled: 0,
            hopeless: 0,
            open: None,
            deaths: (0, 0),
            last_version: 0,
        }
    }

    /// From now on this is wanted; gives it the next version. False if it is no change.
    pub fn want(&mut self, mut snapshot: Snapshot) -> bool {
        if self.wanted.version > 0 && snapshot.objects == self.wanted.objects {
            return false;
        }
        self.last_version += 1;
        snapshot.version = self.last_version;
        self.wanted = Arc::new(snapshot);
        true
    }

    /// What is wanted.
    pub fn wanted(&self) -> &Arc<Snapshot> {
        &self.wanted
    }

    /// What was live last.
    pub fn live(&self) -> Option<&Arc<Snapshot>> {
        self.live.as_ref()
    }

    /// What is sent and not answered yet.
    pub fn open(&self) -> Option<&Arc<Snapshot>> {
        self.open.as_ref().map(|open| &open.snapshot)
    }

    /// When the open question is overdue.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.deadline)
    }

    /// The open question is overdue: it stays open, and is overdue again after as long.
    pub fn postpone(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.deadline = now + CONFIRM_TIMEOUT;
        }
    }

    /// What is to be sent now, if anything, with the snapshot that it leads to. It counts as sent.
    pub fn next(&mut self, now: Instant) -> Option<(ToDataPlane, Arc<Snapshot>)> {
        let version = self.wanted.version;
        if self.open.is_some() || [0, self.settled, self.hopeless].contains(&version) {
            return None;
        }
        let message = match &self.base {
            Some(base) => ToDataPlane::Delta(Delta::between(base, &self.wanted)),
            None => ToDataPlane::Snapshot(Snapshot::clone(&self.wanted)),
        };
        self.open = Some(Open { snapshot: self.wanted.clone(), deadline: now + CONFIRM_TIMEOUT });
        Some((message, self.wanted.clone()))
    }

    /// The data plane says that a version is live on all workers.
    pub fn confirmed(&mut self, version: u64) -> Outcome {
        let Some(open) = self.open.take_if(|open| open.snapshot.version == version) else { return Outcome::Nothing };
        self.base = Some(open.snapshot.clone());
        self.live = Some(open.snapshot);
        self.settled = version;
        self.deaths = (0, 0);
        if version == self.wanted.version { Outcome::Live(version) } else { Outcome::Overtaken(version) }
    }

    /// The data plane says that a version cannot be made ready; it goes on with what it had. The next change is sent whole.
    pub fn refused(&mut self, version: u64) -> Outcome {
        if self.open.take_if(|open| open.snapshot.version == version).is_none() {
            return Outcome::Nothing;
        }
        self.base = None;
        self.take_back(version);
        Outcome::TakenBack(version)
    }

    /// The data plane is gone.
    pub fn lost(&mut self) -> Outcome {
        let open = self.open.take();
        self.forget();
        let Some(version) = open.map(|open| open.snapshot.version) else { return Outcome::Nothing };
        self.deaths = if self.deaths.0 == version { (version, self.deaths.1 + 1) } else { (version, 1) };
        if self.deaths.1 < MAX_DEATHS {
            return Outcome::Nothing;
        }
        self.take_back(version);
        self.settled = 0;
        Outcome::TakenBack(version)
    }

    /// A data plane was adopted that has this version. Ours are newer.
    pub fn adopted(&mut self, version: u64) {
        self.forget();
        self.last_version = self.last_version.max(version);
        if (1..=version).contains(&self.wanted.version) {
            self.last_version += 1;
            let objects = self.wanted.objects.clone();
            self.wanted = Arc::new(Snapshot { version: self.last_version, objects });
        }
    }

    /// What the data plane has is not known any more.
    pub fn forget(&mut self) {
        self.base = None;
        self.settled = 0;
        self.open = None;
    }

    /// Wants again what was live, unless something newer is wanted by now.
    fn take_back(&mut self, version: u64) {
        if self.wanted.version != version {
            return;
        }
        match &self.live {
            Some(live) if live.version != version => {
                self.wanted = live.clone();
                self.settled = live.version;
            }
            // Nothing to go back to: the next edit must do better.
            _ => self.hopeless = version,
        }
    }
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_model::snapshot::{Key, Object, Policy};

    use super::*;

    /// A snapshot with one object of this content.
    fn content(text: &str) -> Snapshot {
        let policy = Policy { name: "p".into(), listener: text.into(), allow: Vec::new() };
        Snapshot { version: 0, objects: [(Key::Policy("p".into()), Object::Policy(policy.into()))].into() }
    }

    /// What is sent next: "snapshot 1", "delta 2", or nothing.
    fn sent(publisher: &mut Publisher) -> Option<String> {
        publisher.next(Instant::now()).map(|(message, _)| match message {
            ToDataPlane::Snapshot(snapshot) => format!("snapshot {}", snapshot.version),
            ToDataPlane::Delta(delta) => format!("delta {}", delta.version),
            other => panic!("{other:?} is not for the publisher to send"),
        })
    }

    /// A publisher whose first version is live.
    fn live() -> Publisher {
        let mut publisher = Publisher::new();
        assert!(publisher.want(content("a")));
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 1"));
        assert_eq!(publisher.confirmed(1), Outcome::Live(1));
        publisher
    }

    #[test]
    fn the_whole_is_sent_first_and_then_what_changed() {
        let mut publisher = live();
        assert_eq!(sent(&mut publisher), None, "it is live");
        assert!(!publisher.want(content("a")), "nothing changed");
        assert!(publisher.want(content("b")));
        assert_eq!(sent(&mut publisher).as_deref(), Some("delta 2"));
    }

    #[test]
    fn changes_made_while_one_is_open_are_sent_together() {
        let mut publisher = live();
        publisher.want(content("b"));
        sent(&mut publisher);
        publisher.want(content("c"));
        publisher.want(content("d"));
        assert_eq!(sent(&mut publisher), None, "one at a time");
        assert_eq!(publisher.confirmed(2), Outcome::Overtaken(2));
        assert_eq!(sent(&mut publisher).as_deref(), Some("delta 4"));
    }

    #[test]
    fn a_refused_version_is_taken_back_and_the_next_is_sent_whole() {
        let mut publisher = live();
        publisher.want(content("bad"));
        sent(&mut publisher);
        assert_eq!(publisher.refused(2), Outcome::TakenBack(2));
        assert_eq!(publisher.wanted().version, 1);
        assert_eq!(sent(&mut publisher), None, "the data plane has what was live");
        publisher.want(content("good"));
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 3"));
    }

    #[test]
    fn a_new_data_plane_gets_what_is_wanted_as_a_whole() {
        let mut publisher = live();
        assert_eq!(publisher.lost(), Outcome::Nothing);
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 1"));
    }

    #[test]
    fn a_version_that_three_data_planes_do_not_survive_is_taken_back() {
        let mut publisher = live();
        publisher.want(content("deadly"));
        for outcome in [Outcome::Nothing, Outcome::Nothing, Outcome::TakenBack(2)] {
            assert!(sent(&mut publisher).is_some());
            assert_eq!(publisher.lost(), outcome);
        }
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 1"), "the new data plane gets what worked");
    }

    #[test]
    fn a_first_version_that_is_refused_waits_for_the_next_edit() {
        let mut publisher = Publisher::new();
        publisher.want(content("bad"));
        sent(&mut publisher);
        assert_eq!(publisher.refused(1), Outcome::TakenBack(1));
        assert_eq!(sent(&mut publisher), None);
        publisher.want(content("good"));
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 2"));
    }

    #[test]
    fn versions_go_on_after_those_of_an_adopted_data_plane() {
        let mut publisher = Publisher::new();
        publisher.adopted(7);
        publisher.want(content("a"));
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 8"));
        publisher.confirmed(8);
        publisher.adopted(8);
        assert_eq!(sent(&mut publisher).as_deref(), Some("snapshot 9"), "adopted once more after a broken link");
    }

    #[test]
    fn an_answer_to_an_old_question_changes_nothing() {
        let mut publisher = live();
        publisher.want(content("b"));
        sent(&mut publisher);
        assert_eq!(publisher.confirmed(1), Outcome::Nothing);
        assert_eq!(publisher.refused(9), Outcome::Nothing);
        assert_eq!(publisher.confirmed(2), Outcome::Live(2));
    }
}
