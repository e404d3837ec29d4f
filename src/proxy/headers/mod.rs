//! Fields that a proxy has to judge, remove or write. Pure.

pub mod forwarded;
pub mod hop;
pub mod legal;
pub mod request_id;
pub mod trace;
pub mod via;
