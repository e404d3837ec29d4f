//! `carry`: what a call of the application's takes over from the incoming call that it is made for.

use http::{HeaderMap, HeaderName, HeaderValue};
use onehop_filters::contract::{Moment, Trace};

use crate::snapshot::cell::View;
use crate::snapshot::incoming::Tie;
use crate::snapshot::{Listener, Route};

/// Goes to the application with an incoming call, and comes back with the calls that it makes for it.
static HANDLE: HeaderName = HeaderName::from_static("x-onehop-call");

/// The handle that a call comes with.
pub fn handle(headers: &HeaderMap) -> Option<u128> {
    let text =
        headers.get(&HANDLE)?.to_str().ok().filter(|t| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u128::from_str_radix(text, 16).ok()
}

/// The field that tells the application.
pub fn field(handle: u128) -> (HeaderName, HeaderValue) {
    let text = format!("{handle:032x}");
    (HANDLE.clone(), HeaderValue::try_from(text).expect("hexadecimal digits"))
}

/// When the incoming call must be over that caused this one, as nothing else need be done for it then; and who made it.
pub fn tie(view: &View, listener: &Listener, route: &Route, trace: Trace, handle: Option<u128>) -> Tie {
    match &view.incoming {
        Some(incoming) if (route.inherit_deadline || route.carry_identity) && listener.is_outbound() => {
            let tie = incoming.tie(trace.trace_id, handle);
            Tie {
                deadline: if route.inherit_deadline { tie.deadline } else { Moment::MAX },
                whose: tie.whose.filter(|_| route.carry_identity),
            }
        }
        _ => Tie::NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_written_as_they_are_read() {
        for n in [0, 7, u128::MAX] {
            assert_eq!(handle(&HeaderMap::from_iter([field(n)])), Some(n));
        }
        for bad in ["", "7", "+0000000000000000000000000000007", "zz000000000000000000000000000000"] {
            assert_eq!(handle(&HeaderMap::from_iter([(HANDLE.clone(), HeaderValue::from_static(bad))])), None, "{bad}");
        }
    }
}
