//! The server name in a ClientHello that is not answered here: a TLS listener that passes connections through reads it
//! and nothing else. Pure and incremental: bytes in, verdict out; clocks and sockets are the caller's.
//!
//! The hello may come in any number of segments and of TLS records (RFC 8446 section 5.1). What is not understood is
//! skipped, so GREASE (RFC 8701), an encrypted inner hello (ECH) and whatever comes later are no trouble; what
//! contradicts itself is refused, since the endpoint might read it otherwise.

/// Largest hello that is read, records and all. With post-quantum keys a hello takes about 1,800 bytes.
pub const LIMIT: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEAD: usize = 5;
const MESSAGE_HEAD: usize = 4;
/// RFC 8446 section 5.1: the most a record in the clear carries.
const RECORD_LIMIT: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
/// RFC 1035 section 2.3.4.
const NAME_LIMIT: usize = 253;

/// Why these bytes are no hello that a name can be taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Another protocol.
    #[error("this is not TLS")]
    NotTls,
    /// A hello that contradicts itself.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// More than [`LIMIT`].
    #[error("the ClientHello is too long")]
    TooLong,
    /// The name is no host name (RFC 6066 section 3).
    #[error("the server name is not a host name")]
    Name,
    /// The client closed before it was complete.
    #[error("the ClientHello is not complete")]
    Cut,
}

/// A hello that is being read.
#[derive(Debug, Default)]
pub struct Hello {
    /// Head of the record that begins.
    head: [u8; RECORD_HEAD],
    head_len: usize,
    /// Payload that the current record still has.
    left: usize,
    /// The handshake message so far, without record heads.
    message: Vec<u8>,
    taken: usize,
}

/// What a complete hello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The name the client asks for, lower-case, without a final dot; `None` if it names none.
    pub server_name: Option<String>,
}

impl Hello {
    /// Takes the next bytes of the connection. `None`: more are needed.
    ///
    /// # Errors
    /// No further byte can make a hello of it.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Greeting>, HelloError> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let n = bytes.len().min(RECORD_HEAD - self.head_len).min(LIMIT - self.taken);
                self.head[self.head_len..self.head_len + n].copy_from_slice(&bytes[..n]);
                self.head_len += n;
                self.taken += n;
                bytes = &bytes[n..];
                self.record()?;
            } else {
                let n = bytes.len().min(self.left).min(LIMIT - self.taken);
                self.message.extend_from_slice(&bytes[..n]);
                self.left -= n;
                self.taken += n;
                bytes = &bytes[n..];
                if let Some(greeting) = self.complete()? {
                    return Ok(Some(greeting));
                }
            }
            if self.taken >= LIMIT {
                return Err(HelloError::TooLong);
            }
        }
        Ok(None)
    }

    /// Judges a record's head as far as it is there: the first byte of another protocol is enough.
    fn record(&mut self) -> Result<(), HelloError> {
        let [kind, major, _, high, low] = self.head;
        let other = if self.message.is_empty() { HelloError::NotTls } else { HelloError::Malformed };
        if kind != HANDSHAKE || (self.head_len > 1 && major != 3) {
            return Err(other);
        }
        if self.head_len == RECORD_HEAD {
            self.left = usize::from(u16::from_be_bytes([high, low]));
            self.head_len = 0;
            // RFC 8446 section 5.1: no empty fragments of handshake messages.
            if self.left == 0 || self.left > RECORD_LIMIT {
                return Err(HelloError::Malformed);
            }
        }
        Ok(())
    }

    fn complete(&self) -> Result<Option<Greeting>, HelloError> {
        match self.message.first() {
            Some(&CLIENT_HELLO) => {}
            Some(_) => return Err(HelloError::Malformed),
            None => return Ok(None),
        }
        let Some(&[_, a, b, c]) = self.message.first_chunk::<MESSAGE_HEAD>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| HelloError::TooLong)?;
        if length > LIMIT {
            return Err(HelloError::TooLong);
        }
        match self.message.get(MESSAGE_HEAD..MESSAGE_HEAD + length) {
            Some(body) => greeting(body).map(Some),
            None => Ok(None),
        }
    }
}

/// RFC 8446 section 4.1.2.
fn greeting(body: &[u8]) -> Result<Greeting, HelloError> {
    let mut hello = Reader(body);
    // Version and random.
    hello.take(2 + 32)?;
    // Session id, cipher suites, compression methods.
    let session = hello.u8()?;
    hello.take(session)?;
    let suites = hello.u16()?;
    hello.take(suites)?;
    let methods = hello.u8()?;
    hello.take(methods)?;
    let mut server_name = None;
    // A client of TLS 1.2 may have none.
    if !hello.0.is_empty() {
        let length = hello.u16()?;
        let mut extensions = Reader(hello.take(length)?);
        if !hello.0.is_empty() {
            return Err(HelloError::Malformed);
        }
        let mut seen = false;
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let length = extensions.u16()?;
            let data = extensions.take(length)?;
            if kind == usize::from(SERVER_NAME) {
                // RFC 8446 section 4.2: no extension twice. Two readers might take different ones.
                if std::mem::replace(&mut seen, true) {
                    return Err(HelloError::Malformed);
                }
                server_name = Some(name(data)?);
            }
        }
    }
    Ok(Greeting { server_name })
}

/// RFC 6066 section 3: a list, with one name of each kind at most, of which there is one.
fn name(data: &[u8]) -> Result<String, HelloError> {
    let mut data = Reader(data);
    let length = data.u16()?;
    let mut list = Reader(data.take(length)?);
    if !data.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let kind = list.u8()?;
    let length = list.u16()?;
    let name = list.take(length)?;
    if kind != 0 || !list.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let name = name.strip_suffix(b".").unwrap_or(name);
    let fits = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_LIMIT || !name.iter().all(fits) {
        return Err(HelloError::Name);
    }
    let text = std::str::from_utf8(name).map_err(|_| HelloError::Name)?;
    Ok(text.to_ascii_lowercase())
}

/// What is left of a structure.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
    fn u8(&mut self) -> Result<usize, HelloError> {
        Ok(usize::from(self.take(1)?[0]))
    }
    fn u16(&mut self) -> Result<usize, HelloError> {
        let bytes = self.take(2)?;
        Ok(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }
}

#[cfg(test)]
mod tests;
