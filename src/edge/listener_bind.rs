//! Binding: sockets that exist but serve nobody yet.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::plan::Bind;

/// Connections the kernel keeps ready for us; it cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Sockets of one listener.
pub(super) enum Bound {
    /// One for each worker, all on one port: the kernel deals connections out by `SO_REUSEPORT`.
    Tcp(SocketAddr, Vec<std::net::TcpListener>),
    /// One for all.
    Unix(UnixListener, UnixFile),
}

impl Bound {
    /// Binds and listens. With port 0 the first socket chooses for the others.
    pub(super) fn new(bind: &Bind, sockets: usize) -> io::Result<Self> {
        match bind {
            Bind::Unix(path) => {
                let (listener, file) = UnixFile::bind(path)?;
                Ok(Self::Unix(listener, file))
            }
            Bind::Tcp(wanted) => {
                let first = tcp(*wanted)?;
                let address = first.local_addr()?;
                let mut all = vec![first];
                for _ in 1..sockets {
                    all.push(tcp(address)?);
                }
                Ok(Self::Tcp(address, all))
            }
        }
    }

    pub(super) fn address(&self) -> Bind {
        match self {
            Self::Tcp(address, _) => Bind::Tcp(*address),
            Self::Unix(_, file) => Bind::Unix(file.path.clone()),
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The file of a unix socket. It takes its place only with [`UnixFile::publish`], by an atomic rename: a rejected
/// configuration leaves nothing behind.
pub(super) struct UnixFile {
    path: PathBuf,
    staged: Option<PathBuf>,
    /// Device and inode of our own file: never remove a successor's.
    own: (u64, u64),
}

impl UnixFile {
    fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(m) if !m.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket is in the way"));
            }
            Ok(_) if answers(path) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
            }
            Ok(_) => {}
        }
        let mut staged = path.as_os_str().to_owned();
        staged.push(format!(".{}.new", std::process::id()));
        let staged = PathBuf::from(staged);
        let _ = fs::remove_file(&staged);
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.bind(&SockAddr::unix(&staged)?)?;
        let m = fs::symlink_metadata(&staged)?;
        let file = Self { path: path.to_owned(), staged: Some(staged.clone()), own: (m.dev(), m.ino()) };
        // Before it listens, hence before anybody can connect.
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o660))?;
        socket.listen(BACKLOG)?;
        Ok((socket.into(), file))
    }

    /// Puts the socket in its place.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        match self.staged.take() {
            Some(staged) => fs::rename(staged, &self.path),
            None => Ok(()),
        }
    }
}

/// A stale socket file answers nobody. Any other failure (no permission, a full backlog) means that somebody is there.
fn answers(path: &Path) -> bool {
    let knock = || {
        // Nonblocking, or a neighbour with a full backlog would stop this thread.
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    !matches!(knock(), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for UnixFile {
    fn drop(&mut self) {
        let file = self.staged.as_ref().unwrap_or(&self.path);
        if fs::symlink_metadata(file).is_ok_and(|m| (m.dev(), m.ino()) == self.own) {
            let _ = fs::remove_file(file);
        }
    }
}
