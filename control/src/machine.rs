//! What the machine grants: cores, CPU time, descriptors, locked memory.

use ringmesh_model::runtime::Machine;
use ringmesh_model::wire::Driver;
use ringmesh_ring::affinity;
use ringmesh_ring::setup::Wish;

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
