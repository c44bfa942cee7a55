//! `/ready`: whether traffic is served as it is configured.

use crate::state::{Phase, State};

/// Everything that is missing, in words; nothing: ready.
pub fn missing(state: &State) -> Vec<String> {
    let mut missing = Vec::new();
    if state.dataplane.phase != Phase::Running {
        missing.push(format!("the data plane is {}", state.dataplane.phase.as_str()));
    }
    match (state.config.live_version, state.config.version) {
        (0, _) => missing.push("no config is live yet".to_owned()),
        (live, version) if live != version => {
            missing.push(format!("config version {version} is not live on all workers yet, {live} goes on"));
        }
        _ => {}
    }
    let unbound = state.listeners.iter().filter(|listener| listener.sockets == 0);
    missing.extend(unbound.map(|listener| format!("listener `{}` is not bound to {}", listener.name, listener.bind)));
    missing
}

#[cfg(test)]
mod tests {
    use super::super::testing::ready_state;
    use super::*;

    fn check(change: impl FnOnce(&mut State), expected: &[&str]) {
        let mut state = ready_state();
        change(&mut state);
        assert_eq!(missing(&state), expected);
    }

    #[test]
    fn it_is_ready_when_the_wanted_version_is_live_and_every_listener_bound() {
        check(|_| {}, &[]);
    }

    #[test]
    fn what_is_missing_is_named() {
        check(|state| state.dataplane.phase = Phase::Restarting, &["the data plane is restarting"]);
        check(|state| state.config.live_version = 0, &["no config is live yet"]);
        check(|state| state.config.version = 8, &["config version 8 is not live on all workers yet, 7 goes on"]);
        check(|state| state.listeners[0].sockets = 0, &["listener `inbound` is not bound to 127.0.0.1:15006"]);
    }

    #[test]
    fn nothing_is_ready_before_anything_is_known() {
        let missing = missing(&State::default());
        assert_eq!(missing, ["the data plane is starting", "no config is live yet"]);
    }
}
