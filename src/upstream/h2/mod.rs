//! HTTP/2 towards endpoints, on the h2 crate itself: it shows interim answers, stream errors with their origin, and
//! where a body was really cut, all of which a client on top of it hides.

mod body;
mod driver;
mod exchange;
mod gather;
mod head;
mod pump;
mod session;

#[cfg(test)]
mod tests;

pub(super) use exchange::send;
pub(super) use session::Session;
