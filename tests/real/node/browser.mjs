// Chromium without a window, driven over a pipe by its own protocol. No packages.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const PATIENCE = 30_000;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Waits until `is` gives something. */
export async function eventually(what, is) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await is();
    if (found) return found;
    if (Date.now() > end) throw new Error(`it did not come true that ${what}`);
    await pause(50);
  }
}

export class Browser {
  static async start(program) {
    const profile = mkdtempSync(join(tmpdir(), 'onehop-chromium-'));
    const child = spawn(program, [
      '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--ignore-certificate-errors',
      // Nothing but this machine: pages of the issuer name fonts elsewhere.
      '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1',
      `--user-data-dir=${profile}`, '--remote-debugging-pipe', 'about:blank',
    ], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    const browser = new Browser(child, profile);
    const { targetId } = await browser.call('Target.createTarget', { url: 'about:blank' });
    ({ sessionId: browser.page } = await browser.call('Target.attachToTarget', { targetId, flatten: true }));
    await browser.call('Page.enable');
    await browser.call('Network.enable');
    return browser;
  }

  constructor(child, profile) {
    Object.assign(this, { child, profile, waiting: new Map(), last: 0, page: undefined });
    let text = '';
    child.stdio[4].setEncoding('utf8').on('data', (chunk) => {
      const messages = (text + chunk).split('\0');
      text = messages.pop();
      for (const message of messages.map((m) => JSON.parse(m))) {
        const { done, failed } = this.waiting.get(message.id) ?? {};
        this.waiting.delete(message.id);
        if (message.error) failed?.(new Error(message.error.message));
        else done?.(message.result);
      }
    });
    const gone = () => this.waiting.forEach(({ failed }) => failed(new Error('the browser ended')));
    child.on('exit', gone).on('error', gone);
  }

  call(method, params = {}) {
    const id = ++this.last;
    const { page: sessionId } = this;
    this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((done, failed) => this.waiting.set(id, { done, failed }));
  }

  /** Runs a script in the page; its (awaited) value. */
  async run(expression) {
    const answer = await this.call('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (answer.exceptionDetails) throw new Error(answer.exceptionDetails.exception?.description ?? 'the page failed');
    return answer.result.value;
  }

  /** The address shown, once the page is whole. */
  async at() {
    try {
      return await this.run('document.readyState === "complete" ? location.href : ""');
    } catch {
      return ''; // On its way from one page to the next.
    }
  }

  async open(url) {
    await this.call('Page.navigate', { url });
  }

  /** Waits until the browser stands at an address. */
  async arrives(what, fits) {
    let seen = '';
    try {
      return await eventually(what, async () => {
        seen = await this.at();
        return fits(seen) && seen;
      });
    } catch (error) {
      const page = await this.run('document.documentElement.innerText').catch(() => '');
      throw new Error(`${error.message}; at ${seen}: ${page}`);
    }
  }

  text() {
    return this.run('document.body.innerText');
  }

  async end() {
    const gone = new Promise((done) => this.child.on('exit', done));
    this.child.kill();
    await gone;
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }
}
