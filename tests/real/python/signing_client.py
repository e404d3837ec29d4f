"""Sends a signed POST, the same again, and one whose body was changed: signing_client.py URL ALGORITHM KEYID KEYFILE.

Prints the three statuses."""

import base64
import hashlib
import sys
import uuid

import requests
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms

url, algorithm, keyid, keyfile = sys.argv[1:5]


class Key(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id):
        return open(keyfile, "rb").read()

    def resolve_public_key(self, key_id):
        raise NotImplementedError


body = b'{"item": "keyboard"}'
digest = base64.b64encode(hashlib.sha512(body).digest()).decode()
headers = {"content-type": "application/json", "content-digest": f"sha-512=:{digest}:"}
request = requests.Request("POST", url, data=body, headers=headers).prepare()
HTTPMessageSigner(signature_algorithm=getattr(algorithms, algorithm), key_resolver=Key()).sign(
    request,
    key_id=keyid,
    nonce=uuid.uuid4().hex,
    use_existing_digest=True,
    covered_component_ids=("@method", "@target-uri", "content-type", "content-digest"),
)
session = requests.Session()
statuses = [session.send(request).status_code, session.send(request).status_code]
request.body = body.replace(b"keyboard", b"keyboars")
statuses.append(session.send(request).status_code)
print(*statuses)
