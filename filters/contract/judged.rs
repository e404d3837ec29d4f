//! What identities said of a request before its route was chosen: a route may match on claims. The `auth` filter of the
//! chosen route takes the verdicts over, so that a credential is judged once.

use std::sync::Arc;

use super::filter::{AuthVerdict, Authenticator};

/// Verdicts so far; a note in [`super::RequestCx::scratch`].
#[derive(Debug, Default)]
pub struct Judged(Vec<(usize, AuthVerdict)>);

/// An authenticator is the object it is; two of one config are never the same.
fn address(by: &Arc<dyn Authenticator>) -> usize {
    Arc::as_ptr(by).cast::<()>() as usize
}

impl Judged {
    /// Notes a verdict.
    pub fn note(&mut self, by: &Arc<dyn Authenticator>, verdict: AuthVerdict) {
        self.0.push((address(by), verdict));
    }

    /// Looks at the verdict of one.
    #[must_use]
    pub fn verdict(&self, by: &Arc<dyn Authenticator>) -> Option<&AuthVerdict> {
        self.0.iter().find(|(a, _)| *a == address(by)).map(|(_, verdict)| verdict)
    }

    /// Forgets who was accepted: what they set on the request was undone, and they may be asked again.
    pub fn forget_accepted(&mut self) {
        self.0.retain(|(_, verdict)| !matches!(verdict, AuthVerdict::Accepted));
    }

    /// Takes the verdict of one.
    pub fn take(&mut self, by: &Arc<dyn Authenticator>) -> Option<AuthVerdict> {
        let at = self.0.iter().position(|(a, _)| *a == address(by))?;
        Some(self.0.swap_remove(at).1)
    }
}
