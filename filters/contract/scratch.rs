//! What a filter remembers of a request between its way in and its way out.

use std::any::Any;

/// Left by the engine for filters on the way out: the request failed, and this is how.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Why.
    pub reason: super::Reason,
    /// Whether an endpoint may have run the request all the same.
    pub may_have_run: bool,
}

/// Private notes of filters on one request, found by their type: a filter keeps what it noted in a type of its own, so
/// no other can read or replace it. Empty costs no allocation.
#[derive(Default)]
pub struct Scratch(Vec<Box<dyn Any + Send>>);

impl Scratch {
    /// Keeps a note; one of the same type is replaced.
    pub fn put<T: Send + 'static>(&mut self, note: T) {
        match self.find_mut::<T>() {
            Some(old) => *old = note,
            None => self.0.push(Box::new(note)),
        }
    }

    /// Looks at a note.
    #[must_use]
    pub fn find<T: 'static>(&self) -> Option<&T> {
        self.0.iter().find_map(|note| note.downcast_ref())
    }

    /// Changes a note.
    pub fn find_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.0.iter_mut().find_map(|note| note.downcast_mut())
    }

    /// Takes a note away.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        let at = self.0.iter().position(|note| note.is::<T>())?;
        self.0.swap_remove(at).downcast().ok().map(|note| *note)
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scratch({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Key(u8);
    struct Other;

    #[test]
    fn a_note_is_found_by_its_type_only() {
        let mut scratch = Scratch::default();
        scratch.put(Key(1));
        scratch.put(Key(2));
        assert!(scratch.find::<Other>().is_none());
        assert_eq!(scratch.find(), Some(&Key(2)), "the later one replaced the earlier");
        assert_eq!(scratch.take(), Some(Key(2)));
        assert_eq!(scratch.take::<Key>(), None);
    }
}
