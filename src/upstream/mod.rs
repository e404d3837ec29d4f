//! Pools, dialling, HTTP/1 codec, HTTP/2 client.
