//! Names and the hashes of their passwords, as `htpasswd` writes them.

use std::collections::BTreeMap;

use argon2::password_hash::PasswordHash;
use argon2::{Argon2, PasswordVerifier};

/// Bytes of a file.
pub const MAX_FILE: u64 = 4 << 20;
/// Costliest bcrypt hash: about four seconds of a core.
const MAX_BCRYPT: u32 = 16;
/// Costliest argon2 hash: memory in KiB, passes.
const MAX_ARGON2: (u32, u32) = (256 << 10, 16);

/// A hash that passwords are compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    Bcrypt(Box<str>),
    Argon2(Box<str>),
}

/// Who may come in.
#[derive(Debug, Default)]
pub struct Users {
    by_name: BTreeMap<Box<str>, Hash>,
    /// Unique in this process. A verdict is good for its generation only.
    pub generation: u64,
}

impl Users {
    pub fn new(by_name: BTreeMap<Box<str>, Hash>, generation: u64) -> Self {
        Self { by_name, generation }
    }

    /// The hash to compare a password with, and whether a match counts. For a name that nobody has, somebody's hash, the
    /// same one each time: such a name takes as long as another.
    pub fn find(&self, name: &str, seed: u64) -> Option<(&Hash, bool)> {
        if let Some(hash) = self.by_name.get(name) {
            return Some((hash, true));
        }
        let mut draw = foldhash::quality::FixedState::with_seed(seed);
        let at = usize::try_from(std::hash::BuildHasher::hash_one(&mut draw, name)).unwrap_or(usize::MAX);
        Some((self.by_name.values().nth(at.checked_rem(self.by_name.len())?)?, false))
    }
}

impl Hash {
    /// Reads a hash; the error names what is wrong with its kind.
    pub fn parse(text: &str) -> Result<Self, String> {
        if ["$2a$", "$2b$", "$2y$"].iter().any(|p| text.starts_with(p)) {
            let parts: bcrypt::HashParts = text.parse().map_err(|_| "a bcrypt hash is cut or mistyped".to_owned())?;
            return match parts.get_cost() {
                4..=MAX_BCRYPT => Ok(Self::Bcrypt(text.into())),
                cost => Err(format!("a bcrypt cost of {cost} is out of range: 4 to {MAX_BCRYPT}")),
            };
        }
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).map_err(|_| "an argon2 hash is cut or mistyped".to_owned())?;
            let cost = argon2::Params::try_from(&hash).map_err(|_| "an argon2 hash has bad parameters".to_owned())?;
            let whole =
                hash.hash.is_some() && hash.salt.is_some() && argon2::Algorithm::try_from(hash.algorithm).is_ok();
            return match (whole, cost.m_cost() <= MAX_ARGON2.0 && cost.t_cost() <= MAX_ARGON2.1) {
                (false, _) => Err("an argon2 hash is cut or mistyped".to_owned()),
                (_, false) => {
                    Err(format!("an argon2 hash is too costly: at most m={},t={}", MAX_ARGON2.0, MAX_ARGON2.1))
                }
                _ => Ok(Self::Argon2(text.into())),
            };
        }
        Err(match text {
            t if t.starts_with("{SHA}") => "`{SHA}` is unsalted SHA-1, guessed at billions a second",
            t if t.starts_with("$apr1$") || t.starts_with("$1$") => "an MD5 hash is guessed too fast",
            t if t.starts_with("$5$") || t.starts_with("$6$") => "SHA-crypt is not taken here",
            _ => "the password is not hashed, or by crypt(3)",
        }
        .to_owned())
    }

    /// Compares, in a time that does not depend on the password. Takes milliseconds to seconds: never on a worker.
    pub fn fits(&self, password: &[u8]) -> bool {
        match self {
            // bcrypt reads 72 bytes: a longer password would be as good as its beginning.
            Self::Bcrypt(hash) => bcrypt::non_truncating_verify(password, hash).unwrap_or(false),
            Self::Argon2(hash) => {
                let parsed = PasswordHash::new(hash);
                parsed.is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
            }
        }
    }
}

/// Reads one line, `NAME:HASH`.
pub fn line(text: &str) -> Result<(Box<str>, Hash), String> {
    let (name, hash) = text.split_once(':').ok_or("a line is `NAME:HASH`")?;
    // RFC 7617 section 2: no control characters; the colon ends the name.
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err("a user has no name, or control characters in it".to_owned());
    }
    let hash = Hash::parse(hash.trim_end()).map_err(|e| format!("user `{name}`: {e}"))?;
    Ok((name.into(), hash))
}

/// Reads a file; an error says which line. Empty lines and those that begin with `#` are passed over.
pub fn file(text: &str) -> Result<BTreeMap<Box<str>, Hash>, String> {
    let mut all = BTreeMap::new();
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
    for (at, text) in lines {
        let (name, hash) = line(text).map_err(|e| format!("line {}: {e}", at + 1))?;
        if all.insert(name.clone(), hash).is_some() {
            return Err(format!("line {}: user `{name}` stands twice", at + 1));
        }
    }
    Ok(all)
}
