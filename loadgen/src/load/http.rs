//! HTTP/1.1 load: each task is one connection after the other.

use std::cell::RefCell;
use std::rc::Rc;

use ringmesh_ring::Instant;
use ringmesh_ring::Output;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;

use super::connection::{Answer, Connection};
use super::count::Counted;
use super::draft::Draft;
use super::entry::{Mix, Prepared};
use super::seen::Seen;
use super::worker::{self, Due, Ready, Shared};
use super::{Http, Reuse};
use crate::report::Failure;
use crate::tls;
use crate::transport::Transport;

/// What all connections of a thread send.
struct Plan {
    prepared: Vec<Prepared>,
    /// For those entries that are made anew for each request.
    drafts: Vec<Option<Draft>>,
    mix: RefCell<Mix>,
    tls: Option<tls::Client>,
    reuse: Reuse,
    count_field: Option<String>,
}

/// One connection at a time.
struct Task {
    shared: Rc<Shared>,
    plan: Rc<Plan>,
    stop: Stop,
    /// One for each target.
    connections: Box<[Option<Connection<Transport>>]>,
    output: Output,
}

/// Starts a thread's connections.
pub(super) fn spawn(shared: &Rc<Shared>, http: &Http, connections: usize) {
    let plan = Rc::new(Plan {
        prepared: http.entries.iter().map(|entry| Prepared::new(entry, http.reuse)).collect(),
        drafts: http.entries.iter().map(Draft::checked).collect(),
        mix: RefCell::new(Mix::new(http.entries.iter().map(|entry| entry.weight))),
        tls: shared.settings.tls.as_ref().map(|tls| tls.offering(&[tls::HTTP1])),
        reuse: http.reuse,
        count_field: http.count_field.clone(),
    });
    for _ in 0..connections {
        let task = Task {
            stop: shared.net.stop(),
            shared: shared.clone(),
            plan: plan.clone(),
            connections: shared.settings.targets.iter().map(|_| None).collect(),
            output: Output::new(),
        };
        worker::spawn(shared, |ready| task.run(ready));
    }
}

impl Task {
    async fn run(mut self, ready: Ready) {
        if self.plan.reuse == Reuse::KeepAlive {
            self.shared.begin_deadline(&self.stop);
            // A failure here is met again, and counted, with the first request.
            for target in 0..self.connections.len() {
                self.connections[target] = self.connect(target).await.ok();
            }
            self.stop.set_deadline(None);
        }
        self.shared.clone().begin(ready).await;
        while let Some(due) = self.shared.next().await {
            let failure = self.request(&due).await;
            self.shared.pause_after(failure).await;
        }
    }

    /// One request, counted. Says why it failed, if it did.
    async fn request(&mut self, due: &Due) -> Option<Failure> {
        let plan = self.plan.clone();
        let entry = plan.mix.borrow_mut().pick();
        let made = plan.drafts[entry].as_ref().map(|draft| draft.fill(&self.shared.values()));
        let made = made.map(|entry| Prepared::new(&entry, plan.reuse));
        let request = made.as_ref().unwrap_or(&plan.prepared[entry]);
        let begin = Instant::now();
        self.shared.delayed(due, begin);
        self.shared.begin_deadline(&self.stop);
        let mut body = Seen::new(request.check, request.body_bytes, request.body.as_ref());
        let result = self.attempt(request, &mut body).await;
        self.stop.set_deadline(None);
        let result = match result {
            Ok(answer) if request.expect.admits(answer.status) && !body.is_right() => Err(Failure::WrongBody),
            result => result,
        };
        let counted = Counted {
            entry,
            begin,
            expect: request.expect,
            counts_field: plan.count_field.is_some(),
            bytes_sent: request.bytes,
        };
        self.shared.count(due, &counted, &result);
        result.err()
    }

    async fn attempt(&mut self, request: &Prepared, body: &mut Seen) -> Result<Answer, Failure> {
        let target = self.shared.pick_target();
        // Taken out for the time of the exchange: a connection whose answer is not complete never comes back.
        let connection = match self.connections[target].take() {
            Some(connection) if connection.is_open() => connection,
            Some(_) => {
                self.shared.report.borrow_mut().closed_by_server += 1;
                self.connect(target).await?
            }
            None => self.connect(target).await?,
        };
        let field = self.plan.count_field.as_deref();
        let sink = |bytes: &[u8]| body.take(bytes);
        let result = connection.exchange(request, field, &mut self.output, &self.stop, sink).await;
        let answer = result.map_err(|failure| self.shared.blame(target, connection.stream(), failure))?;
        if answer.persistent && self.plan.reuse == Reuse::KeepAlive {
            self.connections[target] = Some(connection);
        }
        Ok(answer)
    }

    async fn connect(&self, target: usize) -> Result<Connection<Transport>, Failure> {
        self.shared.connect(target, self.plan.tls.as_ref(), &self.stop).await.map(Connection::over)
    }
}
