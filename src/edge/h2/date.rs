//! The `Date` field (RFC 9110 section 6.6.1), formatted once a second and worker.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use onehop_filters::contract::{Moment, now as tick};

thread_local! {
    /// Until when it holds, and what it says.
    static LAST: RefCell<(Moment, HeaderValue)> = const { RefCell::new((Moment::ZERO, HeaderValue::from_static(""))) };
}

/// Now, as a field value.
pub fn now() -> HeaderValue {
    LAST.with_borrow_mut(|(until, value)| {
        let tick = tick();
        if tick >= *until {
            let time = SystemTime::now();
            *value = HeaderValue::try_from(httpdate::fmt_http_date(time)).expect("a date is a field value");
            // The second turns somewhere within the next one.
            let passed = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.subsec_nanos());
            *until = tick + (Duration::from_secs(1) - Duration::from_nanos(u64::from(passed)));
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_the_current_second() {
        let before = SystemTime::now();
        let said = httpdate::parse_http_date(now().to_str().expect("text")).expect("a date");
        let after = SystemTime::now();
        assert!(said + Duration::from_secs(1) > before && said <= after, "{said:?} is not in {before:?} to {after:?}");
        assert_eq!(now().len(), 29);
    }
}
