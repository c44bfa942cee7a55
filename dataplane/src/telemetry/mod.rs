//! What the data plane counts and tells. A request costs a few additions in memory that its worker alone writes; control
//! reads it when somebody asks.
//!
//! [`layout`] says where each number lies; [`recorder`] is the worker's side, [`reader`] control's; [`directory`] gives
//! series their places; [`event`] is what access logs are made of.

pub mod layout;
pub mod recorder;
pub mod reader;
pub mod directory;
pub mod event;
pub mod ring;

pub use reader::Reader;
