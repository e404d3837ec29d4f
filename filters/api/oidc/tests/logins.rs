//! The way in: codes, states, tokens, and what a login must not be mistaken for.

use super::*;

#[tokio::test]
async fn a_login_from_beginning_to_end() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"scopes": ["orders"], "parameters": {"prompt": "login"}})).await;
    let mut browser = Browser::default();
    let asked = issuer.begin(&oidc, &mut browser, "/cart?item=7").await;
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "shop"),
        ("redirect_uri", "https://shop.example.com/oauth2/callback"),
        ("scope", "openid orders"),
        ("code_challenge_method", "S256"),
        ("prompt", "login"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    let back = issuer.back(&asked["state"]);
    assert_eq!(issuer.finish(&oidc, &mut browser, &back).await, Ok("/cart?item=7".into()));
    {
        let told = issuer.told.lock();
        let form = &told.forms[0];
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, form["code_verifier"].as_bytes());
        assert_eq!(URL_SAFE_NO_PAD.encode(hash.as_ref()), asked["code_challenge"], "RFC 7636 section 4.6");
        assert_eq!((form["code"].as_str(), &form["redirect_uri"]), ("c1", &asked["redirect_uri"]));
        // RFC 6749 section 2.3.1: `s:e c` form-encoded.
        let basic = base64::engine::general_purpose::STANDARD.encode("shop:s%3Ae%20c");
        assert_eq!(told.basic.as_ref().map(HeaderValue::as_bytes), Some(format!("Basic {basic}").as_bytes()));
    }
    assert_eq!(browser.0.len(), 1, "the login's own cookie is gone: {:?}", browser.0);
    let mut rq = browser.open("/cart");
    rq.headers.insert("x-user", HeaderValue::from_static("eve"));
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    let user = rq.user.as_ref().expect("a user");
    assert_eq!((&*user.subject, &user.claims["email"]), ("ann", &json!("ann@x")));
    assert_eq!(user.scopes.iter().map(|s| &**s).collect::<Vec<_>>(), ["openid", "orders"]);
    assert_eq!(rq.headers["x-user"], "ann");
    assert!(!rq.headers.contains_key(AUTHORIZATION), "tokens stay here");
    assert!(rq.reply_headers.is_empty(), "nothing new for the browser");
    let sealed = URL_SAFE_NO_PAD.decode(&browser.0[0].1).expect("base64");
    for secret in [&br#""f":"r1""#[..], br#""sub""#, br#""t":""#] {
        assert!(!sealed.windows(secret.len()).any(|w| w == secret), "sealed");
    }

    // The same answer again: the state was used, the issuer is not bothered.
    let error = issuer.finish(&oidc, &mut browser, &back).await.expect_err("replayed");
    assert!(error.contains("not begun in this browser"), "{error}");
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn answers_that_do_not_belong_are_refused_before_the_issuer_is_asked() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    let asked = issuer.begin(&oidc, &mut browser, "/").await;
    let state = asked["state"].as_str();
    let url = &issuer.url;
    for (query, says) in [
        (format!("code=c&state={}&iss={url}", "x".repeat(43)), "not begun"),
        (format!("code=c&state={}x&iss={url}", &state[..42]), "not begun"),
        (format!("code=c&iss={url}"), "no state"),
        (format!("code=c&state={state}&state={state}&iss={url}"), "twice"),
    ] {
        let error = issuer.finish(&oidc, &mut browser.clone(), &format!("/oauth2/callback?{query}")).await;
        assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{query}: {error:?}");
    }
    let error = issuer.finish(&oidc, &mut Browser::default(), &issuer.back(state)).await;
    assert!(error.is_err_and(|e| e.contains("not begun")), "another browser: a forged login");
    let mut rq = browser.send("POST", &issuer.back(state), &[]);
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Refused(_)), "by GET only");
    for (query, says) in [
        (format!("code=c&state={state}&iss=https://evil.example"), "another issuer"),
        (format!("code=c&state={state}"), "does not say which issuer"),
        (format!("error=access_denied&state={state}&iss={url}"), "access_denied"),
        (format!("error=%3Cscript%3E&state={state}&iss={url}"), "refused the login"),
        (format!("state={state}&iss={url}"), "no code"),
    ] {
        let mut browser = Browser::default();
        let fresh = issuer.begin(&oidc, &mut browser, "/").await;
        let query = query.replace(state, &fresh["state"]);
        let error = issuer.finish(&oidc, &mut browser, &format!("/oauth2/callback?{query}")).await;
        assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{query}: {error:?}");
        assert!(browser.0.is_empty(), "forgotten: {:?}", browser.0);
    }
    // A copy of the cookie does not make an answer good twice.
    let mut copy = browser.clone();
    issuer.told.lock().nonce.clone_from(&asked["nonce"]);
    assert!(issuer.finish(&oidc, &mut browser, &issuer.back(state)).await.is_ok());
    let error = issuer.finish(&oidc, &mut copy, &issuer.back(state)).await;
    assert!(error.is_err_and(|e| e.contains("used before")));
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn tokens_that_lie_make_no_session() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"maxAuthAge": "1h"})).await;
    let now = seconds();
    let fresh = |more: Json| {
        let mut claims = more;
        claims.as_object_mut().expect("an object").entry("auth_time").or_insert(json!(now));
        claims
    };
    let none = json!({"alg": "none"});
    let hmac = json!({"alg": "HS256", "kid": "k1"});
    let rsa = json!({"alg": "RS256", "kid": "k1"});
    let es = json!({"alg": "ES256", "kid": "k1"});
    for (header, claims, answer, says) in [
        (&es, fresh(json!({"nonce": "other"})), json!({}), "another login"),
        (&es, fresh(json!({"nonce": null})), json!({}), "no login"),
        (&es, fresh(json!({"iss": "https://evil.example"})), json!({}), "issuer"),
        (&es, fresh(json!({"aud": "other"})), json!({}), "audience"),
        (&es, fresh(json!({"aud": ["shop", "other"]})), json!({}), "who asked"),
        (&es, fresh(json!({"azp": "other"})), json!({}), "another client"),
        (&es, fresh(json!({"exp": now - 61})), json!({}), "expired"),
        (&es, fresh(json!({"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"})), json!({}), "another access token"),
        (&es, fresh(json!({"auth_time": now - 3700})), json!({}), "too long ago"),
        (&es, json!({}), json!({}), "no time of the login"),
        (&none, fresh(json!({})), json!({}), "algorithm"),
        (&hmac, fresh(json!({})), json!({}), "algorithm"),
        (&rsa, fresh(json!({})), json!({}), "does not fit the key"),
        (&es, fresh(json!({})), json!({"id_token": null}), "no ID token"),
        (&es, fresh(json!({})), json!({"token_type": "DPoP"}), "not a bearer"),
        (&es, fresh(json!({})), json!({"access_token": null}), "no tokens"),
    ] {
        {
            let mut told = issuer.told.lock();
            (told.header, told.claims, told.answer) = (header.clone(), claims, answer);
        }
        let mut browser = Browser::default();
        let error = issuer.login(&oidc, &mut browser, "/").await;
        assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{says}: {error:?}");
        assert!(browser.0.is_empty(), "no session: {says}");
    }
    {
        let mut told = issuer.told.lock();
        (told.header, told.claims, told.answer) = (es, fresh(json!({})), json!({}));
        // Another's key under the right name.
        let other = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        told.signer = other;
    }
    let error = issuer.login(&oidc, &mut Browser::default(), "/").await;
    assert!(error.is_err_and(|e| e.contains("signature")));
}

#[tokio::test]
async fn scripts_are_told_401_and_plain_http_is_not_enough() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut rq = Browser::default().send("GET", "/api", &[("sec-fetch-mode", "cors")]);
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent));
    assert!(oidc.invite(&mut rq).is_none());
    assert_eq!(oidc.challenge(None), "Cookie realm=\"login\"");
    let mut rq = Browser::default().open("/");
    rq.https = false;
    let fault = oidc.invite(&mut rq).expect("an answer").expect_err("refused");
    assert_eq!((fault.reason, &*fault.detail), (Reason::Forbidden, "a login needs https"));
    let plain = json!({"session": {"secret": SECRET, "cookie": "sid", "secure": false}});
    let plain = issuer.identity(plain).await;
    assert!(plain.invite(&mut rq).expect("an answer").is_err(), "not a loopback host");
    rq.authority = "localhost:8080".parse().expect("an authority");
    assert!(plain.invite(&mut rq).expect("an answer").is_ok());
}

#[tokio::test]
async fn an_issuer_that_is_not_there_is_503_and_old_sessions_go_on() {
    let issuer = Issuer::start().await;
    issuer.told.lock().document = json!({"issuer": "https://another.example"});
    let mut estate = Estate::default();
    let oidc = issuer.identity_in(&mut estate, json!({})).await;
    let mut rq = Browser::default().open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent), "not waited for a second time");
    let fault = oidc.invite(&mut rq).expect("an answer").expect_err("no page to go to");
    assert_eq!(fault.reason, Reason::IdentityUnavailable);
    for wrong in
        [json!({"code_challenge_methods_supported": ["plain"]}), json!({"token_endpoint": "http://evil.example/"})]
    {
        issuer.told.lock().document = wrong;
        let oidc = issuer.identity(json!({})).await;
        assert!(oidc.0.provider.endpoints().is_none());
    }
    issuer.told.lock().document = json!({});
    let known = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&known, &mut browser, "/").await.is_ok());
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Accepted), "a cookie needs no issuer");
    let later = async {
        while oidc.0.provider.endpoints().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), later).await.expect("tried again by itself");
}

#[tokio::test]
async fn several_tabs_log_in_at_once_and_unfinished_logins_do_not_pile_up() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"userinfo": true})).await;
    let mut browser = Browser::default();
    let first = issuer.begin(&oidc, &mut browser, "/one").await;
    let nonce = first["nonce"].clone();
    issuer.begin(&oidc, &mut browser, "/two").await;
    issuer.told.lock().nonce = nonce;
    assert_eq!(issuer.finish(&oidc, &mut browser, &issuer.back(&first["state"])).await, Ok("/one".into()));
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.user.expect("a user").claims["name"], "Ann", "from userinfo");
    let mut browser = Browser::default();
    for _ in 0..20 {
        issuer.begin(&oidc, &mut browser, "/").await;
        assert!(browser.0.len() <= 6, "{}", browser.0.len());
    }
}

#[tokio::test]
async fn a_strict_session_lands_on_a_page_of_its_own() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"session": {"secret": SECRET, "sameSite": "strict"}})).await;
    let mut browser = Browser::default();
    let asked = issuer.begin(&oidc, &mut browser, "/a?b=c&d").await;
    let mut rq = browser.open(&issuer.back(&asked["state"]));
    let AuthVerdict::Reply(reply) = verdict(&oidc, &mut rq).await else { panic!("a page") };
    let lines: Vec<String> = rq.reply_headers.iter().map(|(_, v)| v.to_str().expect("text").to_owned()).collect();
    assert!(lines.iter().any(|l| l.starts_with("__Host-sid=") && l.ends_with("SameSite=Strict")), "{lines:?}");
    let body = reply.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("0;url=/a?b=c&amp;d"), "{body:?}");
}

#[tokio::test]
async fn a_key_proves_the_client_in_place_of_a_secret() {
    let issuer = Issuer::start().await;
    let key = json!({"clientSecret": null, "clientKey": {"key": EC_KEY, "id": "k-7"}});
    let oidc = issuer.identity(key).await;
    assert!(issuer.login(&oidc, &mut Browser::default(), "/").await.is_ok());
    assert!(issuer.login(&oidc, &mut Browser::default(), "/").await.is_ok());
    let told = issuer.told.lock();
    assert!(told.basic.is_none() && told.forms.iter().all(|form| !form.contains_key("client_secret")));
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64");
    let json = |text: &str| serde_json::from_slice::<Json>(&part(text)).expect("JSON");
    let pem = rustls_pki_types::pem::PemObject::from_pem_slice(EC_KEY.as_bytes()).expect("a key");
    let pkcs8: rustls_pki_types::PrivatePkcs8KeyDer<'_> = pem;
    let ours = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der()).expect("a key");
    let public = ours.public_key().as_ref().to_vec();
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, public);
    let mut seen = Vec::new();
    for form in &told.forms {
        assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
        assert_eq!(form["client_id"], "shop");
        let (signed, signature) = form["client_assertion"].rsplit_once('.').expect("three parts");
        public.verify(signed.as_bytes(), &part(signature)).expect("it is ours");
        let (header, claims) = signed.split_once('.').expect("two parts");
        assert_eq!(json(header), json!({"typ": "JWT", "alg": "ES256", "kid": "k-7"}));
        let claims = json(claims);
        assert_eq!(
            (&claims["iss"], &claims["sub"], &claims["aud"]),
            (&json!("shop"), &json!("shop"), &json!(issuer.url))
        );
        assert!(claims["exp"].as_u64() > claims["iat"].as_u64());
        seen.push(claims["jti"].clone());
    }
    assert_ne!(seen[0], seen[1], "each is good once");
}
