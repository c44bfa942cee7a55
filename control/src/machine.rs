//! What the machine grants: cores, CPU time, descriptors, locked memory.

use std::fs;
use std::io;

use ringmesh_model::intercept::{Account, MARK, Marking};
use ringmesh_model::runtime::Machine;
use ringmesh_model::wire::Driver;
use ringmesh_ring::affinity;
use ringmesh_ring::setup::Wish;
use rustix::process::{getegid, geteuid};
use socket2::{Domain, Socket, Type};

/// Cores and CPU time that this process may use.
pub fn look() -> Machine {
    let millicores = |quota: f64| (quota * 1000.0).ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
    Machine {
        allowed_cores: u16::try_from(affinity::allowed_cores().len()).unwrap_or(u16::MAX),
        quota_millicores: affinity::cpu_quota().map(millicores),
    }
}

/// What `ring` is asked for where the config wants this driver.
pub fn wish(driver: Driver) -> Wish {
    match driver {
        Driver::Auto => Wish::Auto,
        Driver::IoUring => Wish::IoUring,
        Driver::Epoll => Wish::Epoll,
    }
}

/// Whether connections of this process and its children may be marked.
pub fn marking() -> Marking {
    let marked = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.set_mark(MARK));
    match marked {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Marking::Denied {
            user: account(geteuid().as_raw(), "/etc/passwd"),
            group: account(getegid().as_raw(), "/etc/group"),
        },
        // Without sockets there is nothing to mark.
        _ => Marking::Granted,
    }
}

/// An account by its number, and by its name if the file has it (passwd(5), group(5)).
fn account(id: u32, file: &str) -> Vec<Account> {
    let table = fs::read_to_string(file).unwrap_or_default();
    let named = table.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| Account::Name(name.to_owned()))
    });
    std::iter::once(Account::Id(id)).chain(named).collect()
}
