//! Parts of a service's endpoints that requests choose from: all of them, and those that carry certain labels.

use std::sync::Arc;

use onehop_filters::contract::mesh::{Balance, Endpoint, Labels, Pick, Picker, stable_hash};

/// A part by labels, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Name in the config.
    pub name: Arc<str>,
    /// What tells it from others, also from one of this name in another config: what requests under way ask for.
    pub key: u64,
    /// All of these an endpoint must carry.
    pub labels: Labels,
}

impl Subset {
    /// The endpoints that carry all of these labels.
    #[must_use]
    pub fn new(name: Arc<str>, labels: Labels) -> Self {
        let mut parts = vec![name.as_bytes()];
        parts.extend(labels.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]));
        let key = stable_hash(&parts);
        Self { name, key, labels }
    }

    fn has(&self, endpoint: &Endpoint) -> bool {
        let carried = endpoint.labels();
        self.labels.iter().all(|(name, value)| carried.find(name) == Some(value))
    }
}

/// What a service's endpoints are prepared for.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Its subsets.
    pub subsets: Arc<[Subset]>,
    /// Whether requests ask for single endpoints.
    pub findable: bool,
}

/// Endpoints to choose from.
pub struct Group {
    picker: Box<dyn Picker>,
    size: usize,
    /// By [`Endpoint::id`], where single endpoints are asked for.
    by_id: Box<[(u64, Arc<Endpoint>)]>,
}

impl Group {
    /// Prepares a policy to choose from these.
    #[must_use]
    pub fn new(balance: &dyn Balance, endpoints: &Arc<[Arc<Endpoint>]>, findable: bool) -> Self {
        let mut by_id = Vec::new();
        if findable {
            by_id.extend(endpoints.iter().map(|e| (e.id, e.clone())));
            by_id.sort_unstable_by_key(|(id, _)| *id);
        }
        Self { picker: balance.index(endpoints.clone()), size: endpoints.len(), by_id: by_id.into() }
    }

    /// The endpoint that is wanted, if it is in this group, available and was not tried; else one by the policy.
    #[must_use]
    pub fn pick(&self, cx: &Pick<'_>, wanted: Option<u64>) -> Option<Arc<Endpoint>> {
        let found = wanted.and_then(|id| {
            let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
            let (_, endpoint) = &self.by_id[at];
            (endpoint.available(cx.now) && !cx.tried.contains(&id)).then(|| endpoint.clone())
        });
        found.or_else(|| self.picker.pick(cx))
    }

    /// How many there are, drained ones included.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }
}

/// The groups of one state of the set.
pub struct Groups {
    whole: Group,
    subsets: Box<[(Subset, Group)]>,
}

impl Groups {
    /// Prepares all of them.
    #[must_use]
    pub fn new(balance: &dyn Balance, endpoints: &Arc<[Arc<Endpoint>]>, shape: &Shape) -> Self {
        let part = |subset: &Subset| {
            let list: Arc<[Arc<Endpoint>]> = endpoints.iter().filter(|e| subset.has(e)).cloned().collect();
            (subset.clone(), Group::new(balance, &list, shape.findable))
        };
        let subsets = shape.subsets.iter().map(part).collect();
        Self { whole: Group::new(balance, endpoints, shape.findable), subsets }
    }

    /// All endpoints, or a subset by its key; `None`: there is no such subset any more.
    #[must_use]
    pub fn find(&self, subset: Option<u64>) -> Option<&Group> {
        match subset {
            None => Some(&self.whole),
            Some(key) => self.subsets.iter().find(|(subset, _)| subset.key == key).map(|(_, group)| group),
        }
    }

    /// Sizes of the subsets, by name.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.subsets.iter().map(|(subset, group)| (&*subset.name, group.size()))
    }
}
