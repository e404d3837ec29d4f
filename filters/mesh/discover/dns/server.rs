//! A DNS server for tests: one UDP socket, answers as told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

use crate::contract::mesh::{Found, Report};

/// What it says to one kind of question.
#[derive(Clone)]
pub enum Says {
    /// Addresses, good for so many seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    /// Priority, weight, port, target.
    Services(Vec<(u16, u16, u16, &'static str)>, u32),
    /// No such name.
    NxDomain,
    /// An error of its own.
    ServFail,
}

/// The server; stops when dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    says: Arc<Mutex<Says>>,
    /// What it says of addresses while `says` speaks of services.
    pub hosts: Arc<Mutex<Says>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts one.
    pub async fn start(first: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let says = Arc::new(Mutex::new(first));
        let hosts = Arc::new(Mutex::new(Says::NxDomain));
        let (told, told_hosts) = (says.clone(), hosts.clone());
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
                let Ok(query) = Message::from_vec(&buffer[..n]) else { continue };
                let mut says = told.lock().clone();
                let kind = query.queries[0].query_type();
                if matches!(says, Says::Services(..)) && kind != RecordType::SRV {
                    says = told_hosts.lock().clone();
                }
                let _ = socket.send_to(&answer(&query, &says), peer).await;
            }
        });
        Self { address, says, hosts, task }
    }
    /// Changes its mind.
    pub fn say(&self, says: Says) {
        *self.says.lock() = says;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(query: &Message, says: &Says) -> Vec<u8> {
    let question = query.queries[0].clone();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_available = true;
    let name = question.name().clone();
    match says {
        Says::NxDomain => reply.metadata.response_code = ResponseCode::NXDomain,
        Says::ServFail => reply.metadata.response_code = ResponseCode::ServFail,
        Says::Addresses(list, ttl) if question.query_type() == RecordType::A => {
            reply.add_answers(list.iter().map(|ip| Record::from_rdata(name.clone(), *ttl, RData::A(A(*ip)))));
        }
        Says::Services(list, ttl) if question.query_type() == RecordType::SRV => {
            reply.add_answers(list.iter().map(|(priority, weight, port, target)| {
                let target = Name::from_ascii(target).expect("a test writes valid names");
                Record::from_rdata(name.clone(), *ttl, RData::SRV(SRV::new(*priority, *weight, *port, target)))
            }));
        }
        Says::Addresses(..) | Says::Services(..) => {}
    }
    reply.add_query(question);
    reply.to_vec().expect("a reply encodes")
}

/// A report that hands on what it is told.
pub fn report() -> (Report, tokio::sync::mpsc::UnboundedReceiver<Result<Vec<Found>, String>>) {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let report = Report(Arc::new(move |news| {
        let _ = tell.send(news);
    }));
    (report, told)
}
