//! Where the admin listener sits: TCP, or a unix socket that only its owner may use.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::guard::Peer;
use crate::config::plan::Bind;

const BACKLOG: i32 = 128;

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, File),
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    pub(super) fn bind(bind: &Bind) -> io::Result<Self> {
        match bind {
            Bind::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&(*address).into())?;
                socket.listen(BACKLOG)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(socket.into())?))
            }
            Bind::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                Ok(Self::Unix(UnixListener::from_std(listener)?, file))
            }
        }
    }

    pub(super) fn bound(&self) -> io::Result<Bind> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Bind::Tcp),
            Self::Unix(_, file) => Ok(Bind::Unix(file.path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Peer::of(peer.ip())))
            }
            Self::Unix(listener, _) => Ok((Stream::Unix(listener.accept().await?.0), Peer::Unix)),
        }
    }
}

/// The socket file; removed with the listener, unless somebody has put another one there.
pub(super) struct File {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for File {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(StdUnixListener, File)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && abandoned(path) => {
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        other => other?,
    }
    // Nobody can connect before `listen`, so there is no moment at which others may.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let found = fs::symlink_metadata(path)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((socket.into(), File { path: path.into(), id: (found.dev(), found.ino()) }))
}

/// A socket file that no process listens on: what a killed process leaves.
fn abandoned(path: &Path) -> bool {
    let socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    socket && StdUnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}
