//! Incoming calls that are under way: what an application calls through a mesh listener on behalf of one of them is tied
//! to it by the handle that the application was given, or by the trace context that applications pass on anyway, and takes
//! over its deadline and its user.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::HeaderValue;
use onehop_filters::contract::principal::{Consumer, User};
use onehop_filters::contract::{Moment, RequestCx};
use parking_lot::Mutex;
use smallvec::SmallVec;

/// A power of two.
const SHARDS: usize = 64;

/// A call under way.
struct Call {
    number: u64,
    /// When it must be over.
    deadline: Moment,
    whose: Option<Arc<Whose>>,
}

/// Nearly always one call. A client may have several under way in one trace.
type Calls = SmallVec<[Call; 1]>;

/// Who made a call, as its chain found out.
#[derive(Clone)]
pub struct Whose {
    user: Option<Arc<User>>,
    consumer: Option<Arc<Consumer>>,
    /// The credential that goes on to the application, where the identity forwards it.
    authorization: Option<HeaderValue>,
}

impl Whose {
    /// The same user and the same consumer.
    fn is(&self, other: &Self) -> bool {
        let user = match (&self.user, &other.user) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                Arc::ptr_eq(a, b) || (a.identity == b.identity && a.subject == b.subject && !a.subject.is_empty())
            }
            _ => false,
        };
        let consumer = |w: &Self| w.consumer.as_ref().map(|c| c.name.clone());
        user && consumer(self) == consumer(other)
    }
    /// Makes a call one of theirs.
    pub fn take_over(&self, cx: &mut RequestCx) {
        cx.user.clone_from(&self.user);
        cx.consumer.clone_from(&self.consumer);
        if let Some(authorization) = &self.authorization {
            cx.headers.entry(http::header::AUTHORIZATION).or_insert_with(|| authorization.clone());
        }
    }
}

/// What a call takes over from the one it is made for.
pub struct Tie {
    /// When it must be over.
    pub deadline: Moment,
    /// Who is behind it.
    pub whose: Option<Arc<Whose>>,
}

impl Tie {
    /// A call that stands for itself.
    pub const NONE: Self = Self { deadline: Moment::MAX, whose: None };
}

/// See the module. There is one only where some route has `carry`.
pub struct Incoming {
    /// By trace id and by handle. Each is contended by requests whose ids fall on it, for a look at a map.
    shards: [Mutex<HashMap<u128, Calls, foldhash::fast::RandomState>>; SHARDS],
    /// Trace ids are the callers' to choose: they must not be able to choose the shard, too.
    seed: foldhash::quality::RandomState,
    numbers: AtomicU64,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            seed: foldhash::quality::RandomState::default(),
            numbers: AtomicU64::new(0),
        }
    }
}

/// A call that is under way, until it is dropped.
pub struct UnderWay {
    incoming: Arc<Incoming>,
    /// 0: in no trace.
    trace_id: u128,
    handle: Option<u128>,
    number: u64,
}

impl Incoming {
    /// A call begins, of whom nobody knows who makes it.
    #[must_use]
    pub fn enter(self: &Arc<Self>, trace_id: u128, handle: Option<u128>, deadline: Moment) -> UnderWay {
        let number = self.numbers.fetch_add(1, Relaxed);
        let call = UnderWay { incoming: self.clone(), trace_id, handle, number };
        for id in call.ids() {
            self.shard(id).lock().entry(id).or_default().push(Call { number, deadline, whose: None });
        }
        call
    }

    /// What a call takes over that comes with this handle, or else belongs to this trace. Of several calls in a trace the
    /// latest deadline counts: nobody is cut short because of a call that somebody else made. And they tell who is behind
    /// it only if all of them are the same user's: a trace id is anybody's to choose, so one of its calls proves nothing.
    #[must_use]
    pub fn tie(&self, trace_id: u128, handle: Option<u128>) -> Tie {
        let read = |id: u128| {
            let shard = self.shard(id).lock();
            let calls = shard.get(&id)?;
            let (first, others) = calls.split_first()?;
            let whose = first
                .whose
                .as_ref()
                .filter(|whose| others.iter().all(|other| other.whose.as_ref().is_some_and(|other| other.is(whose))));
            let deadline = calls.iter().map(|call| call.deadline).max()?;
            Some(Tie { deadline, whose: whose.cloned() })
        };
        handle.and_then(read).or_else(|| read(trace_id)).unwrap_or(Tie::NONE)
    }

    fn shard(&self, trace_id: u128) -> &Mutex<HashMap<u128, Calls, foldhash::fast::RandomState>> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        let hash = self.seed.hash_one(trace_id) as usize;
        &self.shards[hash % SHARDS]
    }
}

impl UnderWay {
    fn ids(&self) -> impl Iterator<Item = u128> + use<> {
        Some(self.trace_id).filter(|id| *id != 0).into_iter().chain(self.handle)
    }

    /// Its chain has run: this is who makes it.
    pub fn made_by(&self, cx: &RequestCx) {
        let whose = Arc::new(Whose {
            user: cx.user.clone(),
            consumer: cx.consumer.clone(),
            // Of a known user only: what nobody has verified is not passed on in anybody's name.
            authorization: cx.user.as_ref().and_then(|_| cx.headers.get(http::header::AUTHORIZATION).cloned()),
        });
        for id in self.ids() {
            let mut shard = self.incoming.shard(id).lock();
            let mine = shard.get_mut(&id).and_then(|calls| calls.iter_mut().find(|call| call.number == self.number));
            if let Some(call) = mine {
                call.whose = Some(whose.clone());
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        for id in self.ids() {
            let mut shard = self.incoming.shard(id).lock();
            if let Some(calls) = shard.get_mut(&id) {
                calls.retain(|call| call.number != self.number);
                if calls.is_empty() {
                    shard.remove(&id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(incoming: &Incoming, trace_id: u128) -> Moment {
        incoming.tie(trace_id, None).deadline
    }

    #[test]
    fn a_call_is_known_while_it_is_under_way() {
        let incoming = Arc::new(Incoming::default());
        assert_eq!(deadline(&incoming, 7), Moment::MAX);
        let first = incoming.enter(7, Some(70), Moment(100));
        let second = incoming.enter(7, None, Moment(50));
        let other = incoming.enter(8, None, Moment(900));
        let traceless = incoming.enter(0, Some(90), Moment(5));
        assert_eq!((deadline(&incoming, 7), deadline(&incoming, 8)), (Moment(100), Moment(900)));
        assert_eq!(incoming.tie(8, Some(70)).deadline, Moment(100), "the handle says it exactly");
        assert_eq!(incoming.tie(8, Some(71)).deadline, Moment(900), "an unknown one says nothing");
        assert_eq!(incoming.tie(0, Some(90)).deadline, Moment(5));
        assert_eq!(deadline(&incoming, 0), Moment::MAX, "without a trace calls have nothing in common");
        drop(first);
        assert_eq!(deadline(&incoming, 7), Moment(50));
        drop((second, other, traceless));
        assert_eq!((deadline(&incoming, 7), deadline(&incoming, 8)), (Moment::MAX, Moment::MAX));
        assert!(incoming.shards.iter().all(|shard| shard.lock().is_empty()), "nothing is left behind");
    }

    fn user(subject: &str) -> Option<Arc<User>> {
        Some(Arc::new(User {
            identity: "login".into(),
            subject: subject.into(),
            claims: serde_json::Map::new(),
            scopes: Vec::new(),
            expires: Moment::MAX,
        }))
    }

    #[test]
    fn a_trace_tells_who_is_behind_it_only_if_all_its_calls_agree() {
        let incoming = Arc::new(Incoming::default());
        let set = |call: &UnderWay, user: Option<Arc<User>>| {
            let whose = Arc::new(Whose { user, consumer: None, authorization: None });
            for id in call.ids() {
                let mut shard = incoming.shard(id).lock();
                let calls = shard.get_mut(&id).expect("its id");
                calls.iter_mut().find(|c| c.number == call.number).expect("itself").whose = Some(whose.clone());
            }
        };
        let who = |handle| {
            let whose = incoming.tie(7, handle).whose?;
            Some(whose.user.as_ref().map_or(String::new(), |user| user.subject.to_string()))
        };
        let ann = incoming.enter(7, Some(70), Moment::MAX);
        assert_eq!(who(None), None, "nobody has been asked yet");
        set(&ann, user("ann"));
        assert_eq!(who(None).as_deref(), Some("ann"));
        let twin = incoming.enter(7, Some(71), Moment::MAX);
        assert_eq!(who(None), None, "a call that nobody knows yet");
        set(&twin, user("ann"));
        assert_eq!(who(None).as_deref(), Some("ann"));
        let bob = incoming.enter(7, Some(72), Moment::MAX);
        set(&bob, user("bob"));
        assert_eq!(who(None), None, "two users");
        assert_eq!((who(Some(70)).as_deref(), who(Some(72)).as_deref()), (Some("ann"), Some("bob")));
        set(&bob, None);
        assert_eq!(who(None), None, "somebody and nobody");
    }
}
