// An OpenID Connect issuer that knows nothing of onehop: oidc-provider with its own pages for login and consent.
// issuer.mjs ORIGIN [KEY]: the client's origin, and the key (PEM) that proves it. Prints `port=N` once it listens on 127.0.0.1.
import { createPublicKey } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// Installed below target/, not beside this file.
const require = createRequire(new URL('../../../target/real-node/', import.meta.url));
const { Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const [origin, key] = process.argv.slice(2);
// With a key, its public half stands in for the shop's secret.
const proof = key
  ? { token_endpoint_auth_method: 'private_key_jwt', token_endpoint_auth_signing_alg: 'ES256',
      jwks: { keys: [{ ...createPublicKey(readFileSync(key)).export({ format: 'jwk' }), kid: 'k-7', use: 'sig', alg: 'ES256' }] } }
  : { client_secret: 'hush-hush-client' };
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [{
      client_id: 'shop',
      ...proof,
      redirect_uris: [`${origin}/oauth2/callback`],
      post_logout_redirect_uris: [`${origin}/bye`],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      backchannel_logout_uri: `${origin}/oauth2/backchannel-logout`,
      backchannel_logout_session_required: true,
    }, {
      // A program that calls, and the gateways that ask about its tokens.
      client_id: 'machine', client_secret: 'hush-hush-machine', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
    }, {
      client_id: 'gate way', client_secret: 'hush:hush%gateway', grant_types: [], redirect_uris: [], response_types: [],
    }, {
      client_id: 'poster', client_secret: 'hush-hush-poster', token_endpoint_auth_method: 'client_secret_post',
      grant_types: [], redirect_uris: [], response_types: [],
    }],
    features: {
      devInteractions: { enabled: true }, backchannelLogout: { enabled: true },
      clientCredentials: { enabled: true }, introspection: { enabled: true }, revocation: { enabled: true },
    },
    scopes: ['openid', 'offline_access', 'orders', 'stock'],
    cookies: { keys: ['of-no-importance'] },
    pkce: { required: () => true },
    // Its own calls nobody on this machine, against forged requests; the client is here.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    issueRefreshToken: () => true,
    rotateRefreshToken: () => true,
    // Short, so that a test sees tokens renewed.
    ttl: { AccessToken: 6, ClientCredentials: 3600, AuthorizationCode: 60, Grant: 3600, IdToken: 3600, Interaction: 600, RefreshToken: 3600, Session: 3600 },
  });
  provider.on('backchannel.success', () => console.log('backchannel=success'));
  provider.on('backchannel.error', (_, error) => console.log(`backchannel=${error.message} ${error.cause ?? ''}`));
  provider.on('server_error', (_, error) => console.log(`error=${error.stack}`));
  provider.on('grant.error', (_, error) => console.log(`grant=${error.error} ${error.error_detail}`));
  server.on('request', provider.callback());
  console.log(`port=${port}`);
});
