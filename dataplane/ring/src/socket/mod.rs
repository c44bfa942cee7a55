//! Kernel sockets: connections, listeners, binding them, and what the process may have of them.

mod bind;
mod connection;
mod in_flight;
mod limit;
mod listener;
mod owner;
mod tcp;
mod unix;

pub use bind::{BindError, Families, bind_group, bind_group_of};
pub use connection::Socket;
pub use limit::{DescriptorLimit, raise_descriptor_limit};
pub use listener::{Accepted, Listener, is_out_of_descriptors, refuse_newcomers};
pub use owner::{Owner, owner_of_path, owner_of_port};
pub use tcp::{keep_alive, set_client_options};
pub use unix::{Access, PeerProcess, bind_unix, local_path};

pub(crate) use connection::{Turn, race};
