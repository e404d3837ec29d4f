//! Which identities are asked in which order, and what became of them.

use http::Response;
use smallvec::SmallVec;

use crate::contract::Body;
use crate::contract::filter::{AuthError, AuthVerdict};

/// Ways in: any of the lists is enough, all identities of a list are needed. Positions in the list of identities.
pub type Ways = [Vec<usize>];

/// What became of one identity.
#[derive(Clone, Debug, Default)]
pub enum State {
    #[default]
    Unasked,
    Accepted,
    Absent,
    Refused(AuthError),
    Unavailable(&'static str),
}

/// What became of the identities so far.
#[derive(Debug)]
pub struct Tried {
    states: SmallVec<[State; 4]>,
    /// An identity answers by itself.
    pub reply: Option<Box<Response<Body>>>,
}

impl Tried {
    pub fn new(identities: usize) -> Self {
        let mut states = SmallVec::new();
        states.resize_with(identities, State::default);
        Self { states, reply: None }
    }

    pub fn note(&mut self, at: usize, verdict: AuthVerdict) {
        self.states[at] = match verdict {
            AuthVerdict::Accepted => State::Accepted,
            AuthVerdict::Absent => State::Absent,
            AuthVerdict::Refused(error) => State::Refused(error),
            AuthVerdict::Unavailable(why) => State::Unavailable(why),
            AuthVerdict::Reply(reply) => {
                self.reply = Some(reply);
                State::Accepted
            }
        };
    }

    /// Who is asked next; `None` once it is settled. Each identity is asked once, whatever number of lists name it: the
    /// first to accept has taken the credential out of the request.
    pub fn next(&self, ways: &Ways) -> Option<usize> {
        if self.reply.is_some() || self.accepted(ways) {
            return None;
        }
        // A way whose next identity was asked before is closed.
        let next = |way: &Vec<usize>| way.iter().find(|at| !matches!(self.states[**at], State::Accepted)).copied();
        ways.iter().filter_map(next).find(|at| matches!(self.states[*at], State::Unasked))
    }

    /// Whether a way in is open.
    pub fn accepted(&self, ways: &Ways) -> bool {
        ways.iter().any(|way| way.iter().all(|at| matches!(self.states[*at], State::Accepted)))
    }

    /// Why a credential could not be judged.
    pub fn unavailable(&self) -> Option<&'static str> {
        self.states.iter().find_map(|state| if let State::Unavailable(why) = state { Some(*why) } else { None })
    }

    /// The first refusal.
    pub fn refused(&self) -> Option<&AuthError> {
        self.states.iter().find_map(|state| if let State::Refused(error) = state { Some(error) } else { None })
    }

    /// Nobody found a credential of its kind.
    pub fn untouched(&self) -> bool {
        self.states.iter().all(|state| matches!(state, State::Unasked | State::Absent))
    }

    pub fn state(&self, at: usize) -> &State {
        &self.states[at]
    }
}
