"""Serves a folder over TLS: https_files.py FOLDER CERT KEY. Prints a line per request."""

import functools
import http.server
import ssl
import sys


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, pattern, *values):
        print("served", pattern % values, flush=True)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=sys.argv[1]))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(f"port={server.server_address[1]}", flush=True)
server.serve_forever()
