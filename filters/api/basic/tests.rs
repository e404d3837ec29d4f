use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, holding, request, section};
use crate::contract::Directory;

/// Low costs: tests hash often.
fn bcrypt(password: &str) -> String {
    bcrypt::hash(password, 4).expect("a hash")
}

fn argon2(password: &str) -> String {
    use argon2::password_hash::{PasswordHasher, SaltString};
    let salt = SaltString::from_b64("c29tZXNhbHRzb21lc2FsdA").expect("a salt");
    let params = argon2::Params::new(64, 1, 1, None).expect("parameters");
    let hasher = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    hasher.hash_password(password.as_bytes(), &salt).expect("a hash").to_string()
}

fn directory() -> Directory {
    holding(
        "passwords",
        json!({
            "acme": [format!("acme:{}", bcrypt("open sesame")), format!("acme-ci:{}", argon2("p:ss\u{e4}word"))],
            "other": [format!("other:{}", bcrypt("hunter2"))],
        }),
    )
}

fn made(json: serde_json::Value, directory: &Directory, estate: &mut Estate) -> Result<Basic, ConfigError> {
    basic(&section(json), &mut estate.build("identities.staff", directory))
}

fn with(json: serde_json::Value) -> Basic {
    made(json, &directory(), &mut Estate::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn sends(credential: &str) -> RequestCx {
    let mut rq = request("GET", "/");
    let value = format!("Basic {}", STANDARD.encode(credential));
    rq.headers.insert(AUTHORIZATION, value.parse().expect("a value"));
    rq
}

async fn verdict(basic: &Basic, rq: &mut RequestCx) -> AuthVerdict {
    match basic.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(later) => later.await,
    }
}

fn at_once(basic: &Basic, rq: &mut RequestCx) -> Option<AuthVerdict> {
    match basic.authenticate(rq) {
        AuthStep::Done(verdict) => Some(verdict),
        AuthStep::Wait(_) => None,
    }
}

#[tokio::test]
async fn a_good_password_makes_its_consumer_and_is_hashed_once() {
    let basic = with(json!({}));
    for (credential, owner) in
        [("acme:open sesame", "acme"), ("acme-ci:p:ss\u{e4}word", "acme"), ("other:hunter2", "other")]
    {
        let mut rq = sends(credential);
        assert!(at_once(&basic, &mut rq).is_none(), "hashing is not for workers");
        assert!(matches!(verdict(&basic, &mut rq).await, AuthVerdict::Accepted), "{credential}");
        assert_eq!(rq.consumer.as_ref().map(|c| &*c.name), Some(owner));
        assert!(rq.user.is_none() && !rq.headers.contains_key(AUTHORIZATION));
        let mut again = sends(credential);
        assert!(matches!(at_once(&basic, &mut again), Some(AuthVerdict::Accepted)), "from memory");
        assert_eq!(again.consumer.as_ref().map(|c| &*c.name), Some(owner));
    }
    assert_eq!((basic.counters.accepted.value(), basic.counters.cached.value()), (3, 3));
}

#[tokio::test]
async fn a_bad_one_is_refused_without_saying_why() {
    let basic = with(json!({}));
    for credential in
        ["acme:open sesam", "acme:hunter2", "nobody:open sesame", "acme-ci:p", "other:", "acme: open sesame"]
    {
        for seen in ["hashed", "remembered"] {
            match verdict(&basic, &mut sends(credential)).await {
                AuthVerdict::Refused(e) => assert_eq!(e.description, "the name or the password is wrong", "{seen}"),
                other => panic!("{credential}: {other:?}"),
            }
        }
        assert!(at_once(&basic, &mut sends(credential)).is_some(), "a repeated guess costs nothing");
    }
    assert_eq!(basic.challenge(None), "Basic realm=\"staff\", charset=\"UTF-8\"");
}

#[tokio::test]
async fn malformed_credentials_are_refused_unhashed() {
    let basic = with(json!({"realm": "Staff only"}));
    let mut rq = request("GET", "/");
    assert!(matches!(at_once(&basic, &mut rq), Some(AuthVerdict::Absent)));
    for (value, absent) in [
        ("Bearer abc".to_owned(), true),
        ("Basic".to_owned(), true),
        ("Basic !!".to_owned(), false),
        (format!("Basic {}", STANDARD.encode("no colon")), false),
        (format!("Basic {}", STANDARD.encode("a:b\0c")), false),
        (format!("Basic {}", STANDARD.encode([0xff, b':', 0xfe])), false),
        (format!("Basic {}", STANDARD.encode("a:".to_owned() + &"b".repeat(2000))), false),
    ] {
        let mut rq = request("GET", "/");
        rq.headers.insert(AUTHORIZATION, value.parse().expect("a value"));
        let verdict = at_once(&basic, &mut rq).expect("at once");
        match verdict {
            AuthVerdict::Absent => assert!(absent, "{value}"),
            AuthVerdict::Refused(e) => assert!(!absent && e.code == "invalid_request", "{value}"),
            other => panic!("{other:?}"),
        }
    }
    let mut rq = sends("acme:open sesame");
    rq.headers.append(AUTHORIZATION, "Basic eDp5".parse().expect("a value"));
    assert!(matches!(at_once(&basic, &mut rq), Some(AuthVerdict::Refused(_))), "two are not chosen between");
    assert_eq!(basic.challenge(None), "Basic realm=\"Staff only\", charset=\"UTF-8\"");
}

/// bcrypt reads 72 bytes: what follows them must not be free.
#[test]
fn a_long_password_is_not_cut() {
    let long = "x".repeat(73);
    let hash = Hash::parse(&bcrypt::hash(&long, 4).expect("a hash")).expect("parses");
    assert!(!hash.fits(long.as_bytes()), "73 bytes would be as good as 72");
    let fits = Hash::parse(&bcrypt(&long[..71])).expect("parses");
    assert!(fits.fits(&long.as_bytes()[..71]) && !fits.fits(&long.as_bytes()[..70]));
    let argon = Hash::parse(&argon2(&long)).expect("parses");
    assert!(argon.fits(long.as_bytes()) && !argon.fits(&long.as_bytes()[..72]));
}

/// The same work for a name that nobody has: somebody's hash is computed, the same one each time.
#[test]
fn an_unknown_name_costs_what_a_known_one_does() {
    let table = BTreeMap::from([
        ("a".into(), Hash::parse(&bcrypt("x")).expect("parses")),
        ("b".into(), Hash::parse(&argon2("y")).expect("parses")),
    ]);
    let users = users::Users::new(table, 1);
    assert!(matches!(users.find("a", 7), Some((Hash::Bcrypt(_), true))));
    let mut kinds = [0, 0];
    for n in 0..64 {
        let name = format!("nobody-{n}");
        let (hash, counts) = users.find(&name, 7).expect("somebody's");
        assert!(!counts);
        assert_eq!(users.find(&name, 7).map(|(h, _)| h), Some(hash));
        kinds[usize::from(matches!(hash, Hash::Argon2(_)))] += 1;
    }
    assert!(kinds[0] > 8 && kinds[1] > 8, "{kinds:?}");
    assert!(users::Users::default().find("a", 7).is_none());
}

#[tokio::test]
async fn a_flood_of_guesses_is_told_to_wait() {
    // Nobody has a turn to give: whoever waits, waits.
    let basic = Basic { pool: Arc::new(Pool::new(0, 64)), ..with(json!({})) };
    let overloaded = AtomicUsize::new(0);
    let guesses = (0..20).map(|n| {
        let (basic, overloaded) = (&basic, &overloaded);
        async move {
            let mut rq = sends(&format!("acme:guess {n}"));
            let verdict = tokio::time::timeout(Duration::from_millis(200), verdict(basic, &mut rq)).await;
            if matches!(verdict, Ok(AuthVerdict::Unavailable(_))) {
                overloaded.fetch_add(1, SeqCst);
            }
        }
    });
    futures_util::future::join_all(guesses).await;
    assert_eq!(overloaded.load(SeqCst), 12, "eight of one address wait, the others are told at once");
    assert_eq!(basic.counters.overloaded.value(), 12);
}

#[tokio::test]
async fn a_file_makes_users_and_a_change_of_it_ends_what_is_remembered() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("users");
    let write = |text: String| std::fs::write(&path, text).expect("written");
    write(format!("# staff\n\nann:{}\nbob:{}\n", bcrypt("one"), argon2("two")));
    let mut estate = Estate::default();
    let basic = made(json!({"htpasswd": path}), &Directory::default(), &mut estate).unwrap_or_else(|e| panic!("{e}"));
    let mut rq = sends("ann:one");
    assert!(matches!(verdict(&basic, &mut rq).await, AuthVerdict::Accepted));
    assert!(rq.consumer.is_none());
    let user = rq.user.expect("a user");
    assert_eq!((&*user.subject, &*user.identity, &user.claims["sub"]), ("ann", "staff", &json!("ann")));

    let mut seen = Some(store::digest_of(&store::read(&path).expect("read")));
    store::reread(&basic.store, &path, "staff", &mut seen);
    assert!(at_once(&basic, &mut sends("ann:one")).is_some(), "nothing new, nothing forgotten");
    for broken in ["ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "ann", ""] {
        if broken.is_empty() {
            std::fs::remove_file(&path).expect("removed");
        } else {
            write(broken.to_owned());
        }
        store::reread(&basic.store, &path, "staff", &mut seen);
        assert!(at_once(&basic, &mut sends("ann:one")).is_some(), "the last good users stay: {broken}");
    }
    write(format!("ann:{}", bcrypt("three")));
    store::reread(&basic.store, &path, "staff", &mut seen);
    assert!(matches!(verdict(&basic, &mut sends("ann:one")).await, AuthVerdict::Refused(_)));
    assert!(matches!(verdict(&basic, &mut sends("ann:three")).await, AuthVerdict::Accepted));
    assert!(matches!(verdict(&basic, &mut sends("bob:two")).await, AuthVerdict::Refused(_)));
    // The same section again: the same store, no second task.
    let again = made(json!({"htpasswd": path}), &Directory::default(), &mut estate).unwrap_or_else(|e| panic!("{e}"));
    assert!(Arc::ptr_eq(&basic.store, &again.store));
    assert_eq!(estate.publish().len(), 1);
}

#[tokio::test]
async fn nothing_is_remembered_where_nothing_may_be() {
    let basic = with(json!({"cache": "0s"}));
    assert!(matches!(verdict(&basic, &mut sends("other:hunter2")).await, AuthVerdict::Accepted));
    assert!(at_once(&basic, &mut sends("other:hunter2")).is_none());
}

#[test]
fn bad_hashes_and_sections_name_their_cure() {
    for (line, says) in [
        ("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "unsalted SHA-1"),
        ("ann:$apr1$x$y", "MD5"),
        ("ann:$6$x$y", "SHA-crypt"),
        ("ann:secret", "not hashed"),
        ("ann:$2y$05$short", "cut or mistyped"),
        ("ann:$2y$31$/OK.fbVrR/bpIqNJ5ianF.CE5elHaaRFpRvALWMqS45evV2zmwbOa", "out of range"),
        ("ann:$argon2id$v=19$m=9999999,t=1,p=1$c29tZXNhbHQ$c29tZWhhc2hzb21laGFzaA", "too costly"),
        ("ann:$argon2id$v=19$m=64,t=1,p=1", "cut or mistyped"),
        (":x", "no name"),
        ("ann", "NAME:HASH"),
    ] {
        let e = users::line(line).expect_err(line);
        assert!(e.contains(says), "{line}: {e}");
        let (_, errors) = passwords(&holding("passwords", json!({"acme": [line]})).held["passwords"], Path::new("/"));
        assert!(errors.iter().all(|e| e.span.is_some() && e.help.is_some()) && errors.len() == 1);
    }
    let twice = json!({"a": [format!("x:{}", bcrypt("1"))], "b": [format!("x:{}", bcrypt("2"))]});
    let e = made(json!({}), &holding("passwords", twice), &mut Estate::default()).err().expect("two owners");
    assert!(e.message.contains("`x` stands twice"), "{e}");
    for (bad, says) in [
        (json!({"htpasswd": "/no/such/file"}), "No such file"),
        (json!({"cache": "2h"}), "at most 1h"),
        (json!({"realm": "a\"b"}), "cannot stand in a challenge"),
        (json!({"relm": "x"}), "did you mean `realm`"),
    ] {
        let e = made(bad.clone(), &directory(), &mut Estate::default()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}
