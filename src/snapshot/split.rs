//! Weighted choice of a target: by chance, or by what a request says about its caller.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use onehop_filters::contract::mesh::stable_hash;
use onehop_filters::contract::{ConfigError, Expr, Found, Place, RequestCx};
use smallvec::SmallVec;

use crate::config::plan;

/// See the module.
pub struct Split {
    /// Running sums of the weights, with positions in [`super::Snapshot::targets`]. In place where there are few, as nearly
    /// always: a configuration may have thousands of routes.
    targets: SmallVec<[(u32, u32); 2]>,
    sticky: Option<Box<Sticky>>,
    /// Positions of targets with header edits of their own.
    edits: Option<Box<Edited>>,
}

type Edited = Vec<(usize, Arc<plan::CalleeEdits>)>;

/// The same caller, the same target.
struct Sticky {
    by: By,
    /// Weight and hash of the name of each target: what decides is the same in every process and after every reload.
    targets: Box<[(u32, u64)]>,
}

enum By {
    Ip,
    Consumer,
    UserSub,
    Workload,
    Header(HeaderName),
    Cookie(Place),
    Text(Expr),
    /// A cookie that whoever has none is given: its name, and the attributes that follow its value.
    Given(Place, Box<str>, Box<str>),
}

/// Longest value of a cookie of ours that is taken for one.
const MAX_COOKIE: usize = 64;

impl Split {
    /// From targets and weights.
    #[must_use]
    pub fn new(targets: &[(usize, u32)]) -> Self {
        let mut total = 0u32;
        let targets = targets
            .iter()
            .map(|(i, weight)| {
                total = total.saturating_add(*weight);
                (total, u32::try_from(*i).expect("fewer than 2^32 services fit into memory"))
            })
            .collect();
        Self { targets, sticky: None, edits: None }
    }

    /// Edits header fields of what goes to, and comes from, some targets.
    #[must_use]
    pub fn edited(mut self, edits: impl Iterator<Item = (usize, Arc<plan::CalleeEdits>)>) -> Self {
        let edits: Edited = edits.collect();
        self.edits = (!edits.is_empty()).then(|| Box::new(edits));
        self
    }

    /// The header edits of a target.
    #[must_use]
    pub fn edits(&self, target: usize) -> Option<&plan::CalleeEdits> {
        self.edits.as_ref()?.iter().find(|(position, _)| *position == target).map(|(_, edits)| &**edits)
    }

    /// Binds callers to targets, which have these names and weights, in the order of [`Split::new`].
    ///
    /// # Errors
    /// What callers are told apart by is no expression.
    pub fn sticky(mut self, plan: &plan::Sticky, targets: &[plan::Callee]) -> Result<Self, ConfigError> {
        let by = By::compile(plan)?;
        let name = |to: &plan::Callee| match &to.subset {
            None => stable_hash(&[to.service.as_bytes()]),
            Some(subset) => stable_hash(&[to.service.as_bytes(), subset.as_bytes()]),
        };
        let targets = targets.iter().map(|to| (to.weight, name(to))).collect();
        self.sticky = Some(Box::new(Sticky { by, targets }));
        Ok(self)
    }

    /// The target of a request; `None` if every weight is 0 (Gateway API: 500).
    pub fn choose_for(&self, rq: &mut RequestCx, seed: u64) -> Option<usize> {
        let Some(sticky) = &self.sticky else { return self.choose(seed) };
        match sticky.by.key(rq, seed) {
            Some(key) => sticky.choose(key).map(|at| self.targets[at].1 as usize),
            None => self.choose(seed),
        }
    }

    /// Chooses by a random number; `None` if every weight is 0 (Gateway API: 500).
    #[must_use]
    pub fn choose(&self, seed: u64) -> Option<usize> {
        let total = self.targets.last().map_or(0, |(sum, _)| *sum);
        match &*self.targets {
            _ if total == 0 => None,
            [(_, only)] => Some(*only as usize),
            many => {
                // Multiply-shift instead of a division; the bias is below 2^-32.
                let at = u32::try_from(((seed >> 32) * u64::from(total)) >> 32).unwrap_or(u32::MAX);
                many.iter().find(|(sum, _)| at < *sum).map(|(_, i)| *i as usize)
            }
        }
    }

    /// Positions of the targets.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.iter().map(|(_, i)| *i as usize)
    }
}

impl Sticky {
    /// Weighted rendezvous hashing: each target draws an exponential time of its weight for the key, and the first one
    /// wins. A changed weight moves only as many keys as it must, and only to or from the target whose weight changed.
    fn choose(&self, key: u64) -> Option<usize> {
        let time = |(weight, name): &(u32, u64)| {
            let draw = stable_hash(&[&name.to_le_bytes(), &key.to_le_bytes()]);
            #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
            let fraction = ((draw >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -fraction.ln() / f64::from(*weight)
        };
        let drawn = self.targets.iter().enumerate().filter(|(_, (weight, _))| *weight > 0);
        drawn.map(|(at, target)| (time(target), at)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, at)| at)
    }
}

impl By {
    fn compile(plan: &plan::Sticky) -> Result<Self, ConfigError> {
        if let Some((name, age)) = &plan.cookie {
            let age = age.map_or_else(String::new, |age| format!("; Max-Age={}", age.as_secs()));
            let rest = format!("; Path=/; HttpOnly; SameSite=Lax{age}");
            return Ok(Self::Given(Place::Cookie(name.as_str().into()), name.as_str().into(), rest.into()));
        }
        Ok(match plan.by.value.as_str() {
            "ip" | "client.ip" => Self::Ip,
            "consumer" | "consumer.name" => Self::Consumer,
            "user.sub" => Self::UserSub,
            "workload.id" => Self::Workload,
            text => match (text.strip_prefix("header:"), text.strip_prefix("cookie:")) {
                (Some(name), _) => Self::Header(HeaderName::try_from(name.trim()).map_err(|_| {
                    ConfigError::at(plan.by.span, format!("`{name}` is not the name of a header field"))
                        .help("write `header:x-session`")
                })?),
                (None, Some(name)) => Self::Cookie(Place::Cookie(name.trim().into())),
                (None, None) => Self::Text(Expr::compile(text, plan.by.span)?),
            },
        })
    }

    /// A hash of what tells the caller apart; `None`: nothing does.
    fn key(&self, rq: &mut RequestCx, seed: u64) -> Option<u64> {
        let hash = |text: &[u8]| (!text.is_empty()).then(|| stable_hash(&[text]));
        let cookie = |place: &Place, rq: &RequestCx| match place.find(rq) {
            Found::One(value) => Some(value),
            Found::Absent | Found::Ambiguous => None,
        };
        match self {
            Self::Ip => hash(rq.client_ip.to_string().as_bytes()),
            Self::Consumer => hash(rq.consumer.as_ref()?.name.as_bytes()),
            Self::UserSub => hash(rq.user.as_ref()?.subject.as_bytes()),
            Self::Workload => hash(rq.workload.as_ref()?.id.as_bytes()),
            Self::Header(name) => hash(rq.headers.get(name)?.as_bytes()),
            Self::Cookie(place) => hash(cookie(place, rq)?.as_bytes()),
            Self::Text(expr) => hash(expr.text(rq)?.as_bytes()),
            Self::Given(place, name, rest) => {
                let value = match cookie(place, rq).filter(|v| (1..=MAX_COOKIE).contains(&v.len())) {
                    Some(value) => value,
                    None => {
                        let value = format!("{seed:016x}");
                        let secure = if rq.https { "; Secure" } else { "" };
                        let field = HeaderValue::try_from(format!("{name}={value}{rest}{secure}")).ok()?;
                        rq.reply_headers.push((header::SET_COOKIE, field));
                        value
                    }
                };
                hash(value.as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use onehop_filters::contract::{Span, Spot};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn split_follows_the_weights() {
        let split = Split::new(&[(7, 90), (8, 0), (9, 10)]);
        let mut seen = [0u32; 10];
        let mut seed = 0u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (seed ^ (seed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            seen[split.choose(mixed ^ (mixed >> 32)).expect("weights are not all zero")] += 1;
        }
        assert!((88_500..91_500).contains(&seen[7]), "{seen:?}");
        assert_eq!(seen[8], 0);
    }

    #[test]
    fn all_zero_chooses_nobody() {
        assert_eq!(Split::new(&[(0, 0), (1, 0)]).choose(42), None);
        assert_eq!(sticky(&[0, 0]).choose(42), None);
    }

    fn sticky(weights: &[u32]) -> Sticky {
        let names = ["blue", "green", "red"].map(str::as_bytes).map(|n| stable_hash(&[n]));
        Sticky { by: By::Ip, targets: weights.iter().copied().zip(names).collect() }
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..20_000u64).map(|n| stable_hash(&[&n.to_le_bytes()]))
    }

    #[test]
    fn callers_are_spread_by_weight() {
        let split = sticky(&[70, 20, 10]);
        let mut seen = [0u32; 3];
        keys().for_each(|key| seen[split.choose(key).expect("weights")] += 1);
        assert!((13_500..14_500).contains(&seen[0]) && (3_600..4_400).contains(&seen[1]), "{seen:?}");
    }

    #[test]
    fn a_changed_weight_moves_few_and_only_to_whom_it_gives() {
        let (before, after) = (sticky(&[90, 10, 0]), sticky(&[80, 20, 0]));
        let moved: Vec<_> =
            keys().map(|k| (before.choose(k), after.choose(k))).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|m| *m == (Some(0), Some(1))), "nobody moves the other way");
        // 10 % of the callers have to move; 20,000 of them.
        assert!((1_700..2_300).contains(&moved.len()), "{}", moved.len());
    }

    #[test]
    fn who_is_told_apart_by_what() {
        let by = |text: &str| {
            let by = Spot { span: Span::default(), value: text.to_owned() };
            By::compile(&plan::Sticky { by, cookie: None })
        };
        assert!(matches!(by("user.sub"), Ok(By::UserSub)));
        assert!(matches!(by("header:x-a"), Ok(By::Header(name)) if name == "x-a"));
        assert!(matches!(by("cookie: sid"), Ok(By::Cookie(Place::Cookie(name))) if &*name == "sid"));
        assert!(matches!(by("request.headers['a'] + 'b'"), Ok(By::Text(_))));
        assert!(by("header:a b").is_err() && by("1 +").is_err());
    }

    proptest! {
        #[test]
        fn nobody_gets_a_target_of_weight_zero(weights in proptest::collection::vec(0u32..3, 1..4), key in any::<u64>()) {
            let split = sticky(&weights);
            match split.choose(key) {
                Some(at) => prop_assert!(split.targets[at].0 > 0),
                None => prop_assert!(weights.iter().take(3).all(|w| *w == 0)),
            }
        }
    }
}
