//! A service that holds every request until it is let go, and counts how many it has at a time.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::service::{Service, ok};
use crate::wait::eventually;

/// What a client asks for that goes away before it is answered. It is held as all others are, but not counted: the proxy
/// may admit another one in its place before the service has heard that nobody waits any more.
pub const LEAVING: &str = "/leaving";

/// Requests are held while it is shut. Dropped, it lets all go.
pub struct Gate {
    service: Service,
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    shut: bool,
    inside: usize,
    most: usize,
}

impl Gate {
    /// A service whose requests wait.
    pub fn shut() -> Self {
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        lock(&shared.0).shut = true;
        let inside = shared.clone();
        let service = Service::http(move |request| {
            let (state, opened) = &*inside;
            let mut state = lock(state);
            let counted = usize::from(request.head.request().1 != LEAVING);
            state.inside += counted;
            state.most = state.most.max(state.inside);
            while state.shut {
                state = opened.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            // Before its answer is on its way, so that the next request is never counted beside this one.
            state.inside -= counted;
            ok("let go")
        });
        Self { service, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// How many requests it holds.
    pub fn inside(&self) -> usize {
        lock(&self.shared.0).inside
    }

    /// The most that it held at a time.
    pub fn most(&self) -> usize {
        lock(&self.shared.0).most
    }

    /// Lets all go, and waits until they are.
    ///
    /// # Panics
    /// If they do not go.
    #[track_caller]
    pub fn let_go(&self) {
        self.open();
        eventually("all requests are let go", || (self.inside() == 0).then_some(()));
        lock(&self.shared.0).shut = true;
    }

    fn open(&self) {
        lock(&self.shared.0).shut = false;
        self.shared.1.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
