//! HTTP/2 connections that several tasks share, with so many streams each.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use ringmesh_ring::duplex::{Pipe, pump};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::{Buffer, runtime};

use super::worker::Shared;
use crate::report::Failure;
use crate::tls;
use crate::transport::Transport;
use crate::wait::{Event, First, first};

/// What a stream and a connection may receive ahead of being read, in bytes: as much as a load tool can take, so that it
/// is the server's window that is measured.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Largest frame that is taken, in bytes.
const MAX_FRAME_BYTES: u32 = 64 * 1024;

/// One connection to one target, made when it is asked for, and again when it has ended.
#[derive(Default)]
pub(super) struct Link {
    state: RefCell<State>,
    /// The number of the connection that was made last.
    generation: Cell<u64>,
}

#[derive(Default)]
enum State {
    #[default]
    Closed,
    /// Somebody is connecting; the others wait.
    Opening(Rc<Event>),
    Open {
        sender: SendRequest<Bytes>,
        pipe: Rc<Pipe>,
        transport: Rc<Transport>,
    },
}

/// The right to send on a connection.
pub(super) struct Lease {
    pub(super) sender: SendRequest<Bytes>,
    /// The number of the connection.
    pub(super) generation: u64,
    pub(super) transport: Rc<Transport>,
}

impl Link {
    /// A sender on the open connection, which is made if there is none.
    pub(super) async fn sender(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        target: usize,
        tls: Option<&tls::Client>,
        stop: &Stop,
    ) -> Result<Lease, Failure> {
        loop {
            let opening = match &*self.state.borrow() {
                State::Open { sender, transport, .. } => {
                    return Ok(Lease {
                        sender: sender.clone(),
                        generation: self.generation.get(),
                        transport: transport.clone(),
                    });
                }
                State::Opening(event) => Some(event.clone()),
                State::Closed => None,
            };
            match opening {
                Some(event) => {
                    if let First::Other(_) = first(event.wait(), stop.stopped()).await {
                        return Err(Failure::Timeout);
                    }
                    // Who opened it has failed: so do those who waited, or each would try in turn.
                    if matches!(*self.state.borrow(), State::Closed) {
                        return Err(Failure::Connect);
                    }
                }
                None => self.open(shared, target, tls, stop).await?,
            }
        }
    }

    /// Takes no further request on the connection of this number; it ends when its last request has. Says whether it
    /// was open.
    pub(super) fn close(&self, generation: u64) -> bool {
        let open = self.generation.get() == generation && matches!(*self.state.borrow(), State::Open { .. });
        if open {
            *self.state.borrow_mut() = State::Closed;
        }
        open
    }

    /// Bytes sent and received since this was asked last.
    pub(super) fn take_counts(&self) -> (u64, u64) {
        match &*self.state.borrow() {
            State::Open { pipe, .. } => pipe.take_counts(),
            State::Closed | State::Opening(_) => (0, 0),
        }
    }

    async fn open(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        target: usize,
        tls: Option<&tls::Client>,
        stop: &Stop,
    ) -> Result<(), Failure> {
        let opening = Opening { link: self, event: Rc::new(Event::default()) };
        *self.state.borrow_mut() = State::Opening(opening.event.clone());
        let address = &shared.settings.targets[target].address;
        let transport = shared.connect(target, tls, stop).await?;
        if let Some(stream) = transport.tls()
            && stream.alpn().as_deref() != Some(tls::HTTP2)
        {
            shared.explain(|| format!("{address} takes TLS but not HTTP/2 within it; try without --http2"));
            return Err(Failure::Tls);
        }
        let transport = Rc::new(transport);
        let pipe = Pipe::new(Buffer::hollow());
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .enable_push(false);
        // Nothing is waited for: the preface is written into the pipe.
        let (sender, connection) = builder.handshake(pipe.duplex()).await.map_err(|_| Failure::Cut)?;
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        *self.state.borrow_mut() = State::Open { sender, pipe: pipe.clone(), transport: transport.clone() };
        let (link, shared) = (self.clone(), shared.clone());
        runtime::spawn(async move {
            let stop = shared.net.stop();
            // How it ended is told to those who wait for answers.
            let _result = pump(&*transport, &pipe, connection, &stop, &()).await;
            // Unless it was closed on purpose.
            if link.close(generation) {
                shared.report.borrow_mut().closed_by_server += 1;
            }
        });
        Ok(())
    }
}

/// An attempt to connect. However it ends, those who wait for it look again.
struct Opening<'a> {
    link: &'a Link,
    event: Rc<Event>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut state = self.link.state.borrow_mut();
        if matches!(*state, State::Opening(_)) {
            *state = State::Closed;
        }
        drop(state);
        self.event.set();
    }
}
