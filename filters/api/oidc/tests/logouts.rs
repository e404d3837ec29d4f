//! The way out: by the user, and by the issuer.

use super::*;

#[tokio::test]
async fn logging_out_is_for_ones_own_pages_and_ends_every_copy() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    let copy = browser.clone();
    let cross = [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")];
    let mut rq = browser.send("POST", "/oauth2/logout", &cross);
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Refused(_)));
    let mut rq = browser.send("GET", "/oauth2/logout", &cross);
    let AuthVerdict::Reply(page) = verdict(&oidc, &mut rq).await else { panic!("a page that asks") };
    assert_eq!((page.status(), browser.keep(&mut rq, Some(&page))), (StatusCode::OK, 0));
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Accepted));

    let mut rq =
        browser.send("POST", "/oauth2/logout", &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")]);
    let AuthVerdict::Reply(reply) = verdict(&oidc, &mut rq).await else { panic!("an answer") };
    assert_eq!(reply.status(), 303);
    let to = location(&reply);
    let (end, query) = to.split_once('?').expect("a query");
    let query = pairs_of(query);
    assert_eq!(end, format!("{}/end", issuer.url));
    assert_eq!(
        (query["client_id"].as_str(), query["post_logout_redirect_uri"].as_str()),
        ("shop", "https://shop.example.com/")
    );
    assert_eq!(query["id_token_hint"].split('.').count(), 3);
    browser.keep(&mut rq, Some(&reply));
    assert!(browser.0.is_empty());
    assert!(matches!(verdict(&oidc, &mut copy.open("/")).await, AuthVerdict::Absent), "a stolen copy is worth nothing");

    let here = issuer.identity(json!({"localLogout": true, "afterLogout": "/bye"})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&here, &mut browser, "/").await.is_ok());
    let mut rq =
        browser.send("POST", "/oauth2/logout", &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]);
    let AuthVerdict::Reply(reply) = verdict(&here, &mut rq).await else { panic!("an answer") };
    let (parts, body) = reply.into_parts();
    assert_eq!(parts.status, 200, "a script is told where to go");
    assert_eq!(body.collect().await.expect("a body").to_bytes(), r#"{"location":"/bye"}"#);
}

#[tokio::test]
async fn the_issuer_ends_sessions() {
    let issuer = Issuer::start().await;
    let mut estate = Estate::default();
    let oidc = issuer.identity_in(&mut estate, json!({})).await;
    let event = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
    let token = |more: Json| {
        let now = seconds();
        let told = issuer.told.lock();
        let mut claims =
            json!({"iss": told.url, "aud": "shop", "iat": now, "exp": now + 60, "jti": "j1", "events": event});
        overlay(&mut claims, &more);
        told.sign(&json!({"alg": "ES256", "kid": "k1", "typ": "logout+jwt"}), &claims)
    };
    let post = async |oidc: &Oidc, body: String| {
        let mut rq = Browser::default().send("POST", "/oauth2/bye", &[]);
        rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        rq.body = Body::full(body);
        match verdict(oidc, &mut rq).await {
            AuthVerdict::Reply(reply) => reply.status().as_u16(),
            other => panic!("{other:?}"),
        }
    };
    let mut ann = Browser::default();
    assert!(issuer.login(&oidc, &mut ann, "/").await.is_ok());
    issuer.told.lock().claims = json!({"sub": "bob", "sid": "op-2"});
    let mut bob = Browser::default();
    assert!(issuer.login(&oidc, &mut bob, "/").await.is_ok());
    for bad in [
        String::new(),
        "logout_token=x.y.z".to_owned(),
        format!("logout_token={}", token(json!({"sid": "op-1", "nonce": "n"}))),
        format!("logout_token={}", token(json!({"sid": "op-1", "aud": "other"}))),
        format!("logout_token={}", token(json!({"sid": "op-1", "exp": null}))),
        format!("logout_token={}", token(json!({"sid": "op-1", "events": {}}))),
        format!("logout_token={}", token(json!({}))),
        format!("logout_token={0}&logout_token={0}", token(json!({"sid": "op-1"}))),
        format!("logout_token={}", issuer.told.lock().id_token(None)),
    ] {
        assert_eq!(post(&oidc, bad.clone()).await, 400, "{bad}");
    }
    assert!(matches!(verdict(&oidc, &mut ann.open("/")).await, AuthVerdict::Accepted));
    let good = format!("logout_token={}", token(json!({"sid": "op-1"})));
    assert_eq!(post(&oidc, good.clone()).await, 200);
    assert_eq!(post(&oidc, good).await, 400, "once");
    let mut rq = ann.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent));
    assert!(matches!(verdict(&oidc, &mut bob.open("/")).await, AuthVerdict::Accepted), "another session");
    assert_eq!(post(&oidc, format!("logout_token={}", token(json!({"sub": "bob", "jti": "j2"})))).await, 200);
    let again = issuer.identity_in(&mut estate, json!({"userinfo": true})).await;
    assert!(matches!(verdict(&again, &mut bob.open("/")).await, AuthVerdict::Absent), "a reload does not forget");
}
