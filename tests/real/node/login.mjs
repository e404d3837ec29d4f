// A person with a browser: logs in, comes back, stays, logs out, and is logged out.
// login.mjs CHROMIUM ORIGIN ISSUER. Prints `token=...` for each access token that went upstream, and `all` at the end.
import assert from 'node:assert/strict';
import { Browser, eventually } from './browser.mjs';

const [program, origin, issuer] = process.argv.slice(2);
const browser = await Browser.start(program);

/** What a script of the page is told. */
const fetched = (path) => browser.run(`fetch('${path}').then(async (r) => ({
  status: r.status, redirected: r.redirected, type: r.headers.get('content-type'), text: await r.text() }))`);
const bearer = (text) => /authorization: Bearer (\S+)/i.exec(text)?.[1];
const submit = `document.querySelector('button[type=submit], form button').click()`;

/** Opens a page that wants a login, and goes through the issuer's pages. */
async function logIn(path) {
  await browser.open(origin + path);
  await browser.arrives('the issuer asks who it is', (url) => url.startsWith(`${issuer}/interaction/`));
  await browser.run(`document.querySelector('[name=login]').value = 'anna';
    document.querySelector('[name=password]').value = 'of no importance'; ${submit}`);
  const back = (url) => url.startsWith(origin);
  await eventually('the login is through', async () => {
    const url = await browser.at();
    if (url.startsWith(`${issuer}/interaction/`) && await browser.run(`!!document.querySelector('[value=consent]')`)) {
      await browser.run(submit).catch(() => {});
    }
    return back(url);
  });
  assert.equal(await browser.arrives('the browser is back', back), origin + path, 'where it wanted to go');
}

/** Opens a page that needs no login any more. */
async function opened(path) {
  await browser.open(origin + path);
  await browser.arrives('another page', (url) => url === origin + path);
  assert.equal(await browser.run(`performance.getEntriesByType('navigation')[0].redirectCount`), 0);
  assert.match(await browser.text(), new RegExp(`^GET ${path} HTTP`));
}

/** Goes from a page of another site to the logout. */
async function followLogoutLink() {
  await browser.open(`${issuer}/.well-known/openid-configuration`);
  await browser.arrives('a page of another site', (url) => url.startsWith(issuer));
  await browser.run(`location.href = '${origin}/oauth2/logout'`);
  await browser.arrives('the user is asked', (url) => url === `${origin}/oauth2/logout`);
  assert.match(await browser.text(), /Do you want to log out/);
}

try {
  await logIn('/cart?item=7');
  const page = await browser.text();
  assert.match(page, /^GET \/cart\?item=7 HTTP/);
  assert.match(page, /x-user: anna/);
  assert.ok(bearer(page), 'the access token went upstream');
  assert.doesNotMatch(page, /__Host-sid/, 'the cookie did not');
  const { cookies } = await browser.call('Network.getCookies', { urls: [origin] });
  const ours = cookies.filter(({ name }) => name.startsWith('__Host-sid'));
  assert.ok(ours.length > 0);
  assert.ok(ours.every((c) => c.httpOnly && c.secure && c.sameSite === 'Lax' && c.path === '/'), JSON.stringify(ours));
  assert.ok(!ours.some(({ name }) => name.includes('login')), 'the login left nothing behind');
  assert.equal(await browser.run('document.cookie'), '');

  await opened('/again');

  // Access tokens live for 6 s. However many requests ask at once, nobody is turned away and none is renewed twice.
  const tokens = new Set();
  await eventually('the token was renewed twice', async () => {
    const answers = await Promise.all(Array.from({ length: 8 }, () => fetched('/api')));
    for (const { status, text } of answers) {
      assert.equal(status, 200, text);
      tokens.add(bearer(text));
    }
    return tokens.size >= 3;
  });
  tokens.forEach((token) => console.log(`token=${token}`));

  // Another site's link does not log anybody out: the user is asked.
  await followLogoutLink();
  await opened('/still');
  await followLogoutLink();

  // And says yes; the issuer asks for its own session.
  await browser.run(submit);
  await browser.arrives('the issuer asks', (url) => url.startsWith(`${issuer}/session/end`));
  await browser.run(`document.querySelector('[name=logout]').click()`);
  await browser.arrives('the browser is back', (url) => url.startsWith(`${origin}/bye`));
  const refused = await fetched('/api');
  assert.deepEqual([refused.status, refused.redirected, refused.type], [401, false, 'application/problem+json']);

  // Logged in again, then the issuer ends the session behind the browser's back.
  await logIn('/cart');
  await browser.open(`${issuer}/session/end`);
  await browser.arrives('the issuer asks', (url) => url.startsWith(`${issuer}/session/end`));
  await browser.run(`document.querySelector('[name=logout]').click()`);
  await browser.arrives('the issuer says goodbye', (url) => url.startsWith(`${issuer}/session/end/success`));
  await browser.open(`${origin}/bye`);
  await browser.arrives('a page for everybody', (url) => url.startsWith(`${origin}/bye`));
  await eventually('the session is over', async () => (await fetched('/api')).status === 401);
  console.log('all');
} finally {
  await browser.end();
}
