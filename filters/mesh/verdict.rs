//! What a try says about whoever was to answer it: the one reading that breaker and outlier detection share.

use crate::contract::fault::{Reason, Side};
use crate::contract::mesh::TryOutcome;

/// What a try says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works: any answer that is no server error, a 429 among them: it lives, it is only pressed.
    Good,
    /// A server error.
    Error {
        /// One that a gateway makes of an endpoint's absence.
        gateway: bool,
    },
    /// It could not be reached.
    Unreachable,
    /// Nothing: the caller's or our own doing, or an orderly refusal.
    Nothing,
}

/// Judges a try.
pub fn verdict(outcome: &TryOutcome<'_>) -> Verdict {
    match &outcome.result {
        Ok((status, _)) => match (status.as_u16(), outcome.grpc) {
            (502..=504, _) | (_, Some(4 | 14)) => Verdict::Error { gateway: true },
            // gRPC: 2 unknown, 13 internal, 15 data-loss. 12 unimplemented is the caller's mistake.
            (500.., _) | (_, Some(2 | 13 | 15)) => Verdict::Error { gateway: false },
            _ => Verdict::Good,
        },
        Err((reason, _)) => match reason {
            // A passed deadline says how patient the caller was. A refused stream is how a server drains or paces itself.
            Reason::Deadline | Reason::RefusedStream => Verdict::Nothing,
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => Verdict::Unreachable,
            r if r.side() == Side::Upstream => Verdict::Error { gateway: true },
            _ => Verdict::Nothing,
        },
    }
}
