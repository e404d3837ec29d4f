// The public tests of HTTP caches (npm `http-cache-tests`, https://cache-tests.fyi) against a cache between its client and
// its server. cache_tests.mjs BASE: where the cache listens. Prints a line for each requirement that is not met, counts of
// each kind, and `all` at the end.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// Installed below target/, not beside this file.
const root = new URL('../../../target/real-cache-tests/', import.meta.url);
const suite = (path) => import(new URL(`package/${path}`, root));
const fetch = createRequire(root)('node-fetch');
const { default: tests } = await suite('tests/index.mjs');
const { runTests, getResults } = await suite('client/runner.mjs');
const { determineTestResult } = await suite('lib/display.mjs');

await runTests(tests, fetch, false, process.argv[2]);
const results = getResults();
const counts = {};
for (const test of tests.flatMap((group) => group.tests).filter((test) => !test.browser_only)) {
  const kind = test.kind ?? 'required';
  const [, , symbol] = determineTestResult(tests, test.id, results);
  // What is not asked because of another result is neither met nor missed.
  const unasked = ['\u{1F539}', '\u26AA\uFE0F'].includes(symbol);
  const outcome = results[test.id] === true ? 'met' : unasked ? 'unasked' : 'missed';
  counts[`${kind}=${outcome}`] = (counts[`${kind}=${outcome}`] ?? 0) + 1;
  if (kind === 'required' && outcome === 'missed') console.log(`missed=${test.id} ${JSON.stringify(results[test.id])}`);
}
for (const [what, n] of Object.entries(counts)) console.log(`${what} ${n}`);
console.log('all');
process.exit(0);
