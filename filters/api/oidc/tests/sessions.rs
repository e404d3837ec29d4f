//! Sessions: their cookies, and the tokens that are renewed behind them.

use super::*;

#[tokio::test]
async fn tampered_foreign_and_old_cookies_are_nothing() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    let mut tampered = browser.clone();
    let value = &mut tampered.0[0].1;
    let middle = value.len() / 2;
    let flipped = if &value[middle..=middle] == "A" { "B" } else { "A" };
    value.replace_range(middle..=middle, flipped);
    let mut rq = tampered.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent));
    assert_eq!(tampered.keep(&mut rq, None), 1, "the browser forgets it");
    assert!(tampered.0.is_empty());
    assert_eq!(oidc.0.counters.invalid.value(), 1);

    let other = issuer.identity(json!({"clientId": "stock"})).await;
    assert!(matches!(verdict(&other, &mut browser.open("/")).await, AuthVerdict::Absent), "another client's");
    let new = "another-secret-of-more-than-thirty-two-bytes";
    let changed = issuer.identity(json!({"session": {"secret": new}})).await;
    assert!(matches!(verdict(&changed, &mut browser.open("/")).await, AuthVerdict::Absent));
    let rotated = issuer.identity(json!({"session": {"secret": new, "previousSecrets": [SECRET]}})).await;
    assert!(matches!(verdict(&rotated, &mut browser.open("/")).await, AuthVerdict::Accepted));
    let short = issuer.identity(json!({"session": {"secret": SECRET, "maxAge": "1s"}})).await;
    let gone = async {
        while !matches!(verdict(&short, &mut browser.open("/")).await, AuthVerdict::Absent) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it ends");
}

#[tokio::test]
async fn a_long_session_takes_several_cookies_and_one_that_is_too_long_none() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    issuer.told.lock().claims = json!({"groups": vec!["a-group-of-some-length"; 250]});
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    let names: Vec<&str> = browser.0.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["__Host-sid.0", "__Host-sid.1", "__Host-sid.2", "__Host-sid.3"]);
    assert!(browser.0.iter().all(|(n, v)| n.len() + v.len() < 4096));
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.user.expect("a user").claims["groups"].as_array().map(Vec::len), Some(250));
    {
        let mut told = issuer.told.lock();
        (told.claims, told.answer) = (json!({}), json!({"refresh_token": "r".repeat(18_000)}));
    }
    let error = issuer.login(&oidc, &mut Browser::default(), "/").await;
    assert!(error.as_ref().is_err_and(|e| e.contains("does not fit")), "{error:?}");
}

#[tokio::test]
async fn tokens_are_renewed_once_for_all_who_ask() {
    let issuer = Issuer::start().await;
    let mut estate = Estate::default();
    let oidc = issuer.identity_in(&mut estate, json!({"forwardToken": true})).await;
    // At once to be renewed: a quarter of its life is 30 s or more.
    issuer.told.lock().life = 0;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    {
        let mut told = issuer.told.lock();
        (told.life, told.slow) = (3600, true);
    }
    let old = browser.clone();
    let asks = (0..20).map(|_| {
        let mut rq = old.open("/");
        let oidc = &oidc;
        async move {
            let verdict = verdict(oidc, &mut rq).await;
            (verdict, rq)
        }
    });
    for (verdict, mut rq) in futures_util::future::join_all(asks).await {
        assert!(matches!(verdict, AuthVerdict::Accepted), "{verdict:?}");
        assert_eq!(rq.headers[AUTHORIZATION], "Bearer at-2");
        assert_eq!(browser.keep(&mut rq, None), 1, "everybody gets the new cookie");
    }
    assert_eq!(issuer.asked.load(SeqCst), 2, "one login, one refresh");
    // A request that still carries the old cookie is given the new one, and the spent token is not sent again.
    let mut rq = old.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!((rq.headers[AUTHORIZATION].as_bytes(), rq.reply_headers.len()), (&b"Bearer at-2"[..], 1));
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert!(rq.reply_headers.is_empty());
    // After a reload too, and as the new configuration wants it.
    let more = json!({"forwardToken": false, "claimsToHeaders": {"email": "x-mail"}});
    let reloaded = issuer.identity_in(&mut estate, more).await;
    let mut rq = old.open("/");
    assert!(matches!(verdict(&reloaded, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.headers["x-mail"], "ann@x");
    assert!(!rq.headers.contains_key("x-user") && !rq.headers.contains_key(AUTHORIZATION));
    assert_eq!(issuer.asked.load(SeqCst), 2);
}

#[tokio::test]
async fn a_refresh_that_fails_ends_the_session_or_waits() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    issuer.told.lock().life = 0;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    issuer.told.lock().status = 503;
    let verdict_now = verdict(&oidc, &mut browser.open("/")).await;
    assert!(matches!(verdict_now, AuthVerdict::Unavailable(_)), "expired and no issuer: {verdict_now:?}");
    let asked = issuer.asked.load(SeqCst);
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Unavailable(_)));
    assert_eq!(issuer.asked.load(SeqCst), asked, "left alone for a while");

    let oidc = issuer.identity(json!({})).await;
    {
        let mut told = issuer.told.lock();
        (told.life, told.status) = (4, 200);
    }
    let mut living = Browser::default();
    assert!(issuer.login(&oidc, &mut living, "/").await.is_ok());
    issuer.told.lock().status = 503;
    let renewing = async {
        while issuer.asked.load(SeqCst) == asked + 1 {
            let verdict = verdict(&oidc, &mut living.open("/")).await;
            assert!(matches!(verdict, AuthVerdict::Accepted), "its token lives: {verdict:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), renewing).await.expect("it was tried");

    issuer.told.lock().status = 400;
    let over = issuer.identity(json!({})).await;
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&over, &mut rq).await, AuthVerdict::Absent), "login again");
    browser.keep(&mut rq, None);
    assert!(browser.0.is_empty());
}

#[tokio::test]
async fn a_renewed_token_about_somebody_else_is_refused() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    issuer.told.lock().life = 0;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    issuer.told.lock().claims = json!({"sub": "eve"});
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Absent));
}
