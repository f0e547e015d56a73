// Aedes, the MQTT broker in Node, as Muster's local broker where Mosquitto is not installed.
//
//   node aedes.mjs PORT NODE_MODULES SESSIONS_FILE [ACCOUNTS_FILE [TLS_PORT CA CERTIFICATE REVOKED]]
//
// Listens on 127.0.0.1 until SIGTERM or SIGINT; MQTT 3.1.1. Without ACCOUNTS_FILE (broker/local/aedes.py says what
// is in it) it is open to all; with one it lets in whom that names, to topics of their own, and reads it again at
// SIGHUP. At TLS_PORT it wants a certificate of CA that is not in the list REVOKED, whose common name is then the
// account; CERTIFICATE holds its own, with the key. Sessions, their queues and retained messages live in
// memory: a clean stop writes them to SESSIONS_FILE, from where the next start takes them; a crash loses them.
import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { pathToFileURL } from 'node:url'

const [port, modules, sessionsFile, accountsFile] = [Number(process.argv[2]), ...process.argv.slice(3)]
const [tlsPort, ...tlsFiles] = process.argv.slice(6)
// The packages are in a cache, not beside this script: resolve them there.
const requireThere = createRequire(join(modules, 'muster.js'))
const { Aedes } = await import(pathToFileURL(requireThere.resolve('aedes')))
const persistence = requireThere('aedes-persistence')()
const { Packet } = requireThere('aedes-persistence')

// Time for what is already inside the broker to reach the queues when it stops.
const SETTLE_MS = 100
const MAX_TROUBLES_LOGGED = 100
const EXPIRY_CHECK_MS = 1000
const SERVICE_ACCOUNT = '$service'

let accounts = { passwords: {}, keys: {} }
let troubles = 0
let secureServer
if (accountsFile) readAccounts()
const sessions = rememberSessions(persistence)
deliverTwiceRatherThanFail(persistence)
const broker = await Aedes.createBroker({
  persistence,
  // The contract's device ids have up to 64 characters; MQTT 3.1 clients would be held to 23.
  maxClientsIdLength: 256,
  // Packets that a client may send before its session is set up: a device that comes back with a backlog.
  queueLimit: 10_000,
  // Messages that the emitter works on at once. One that waits for a slow client holds a place.
  concurrency: 1_000,
  drainTimeout: 30_000,
  ...(accountsFile ? accessControl() : {})
})
if (accountsFile) {
  process.on('SIGHUP', () => {
    readAccounts()
    readRevoked()
    disconnectWhoMayNot()
  })
  setInterval(disconnectWhoMayNot, EXPIRY_CHECK_MS).unref()
}
// A device that drops its connection is daily life, not trouble.
broker.on('clientError', () => {})
broker.on('connectionError', () => {})
await restore()

const sockets = new Set()
const server = net.createServer({ noDelay: true }, serve)
if (tlsPort) secureServer = tls.createServer({ noDelay: true, ...tlsOptions() }, serve)
for (const one of secureServer ? [server, secureServer] : [server]) {
  one.on('error', (error) => {
    // Out of descriptors: the client tries again later, the others must not suffer.
    if (one.listening) return trouble(`${error.message} at ${sockets.size} connections: raise the limit (ulimit -n)`)
    console.error(`aedes: ${error.message}`)
    process.exit(1)
  })
}

// A malformed packet of one client must not end the broker for all others.
process.on('uncaughtException', (error) => trouble(error.stack))

process.once('SIGTERM', stop)
process.once('SIGINT', stop)

// The other one last: who can reach that finds this one there.
if (secureServer) {
  await new Promise((resolve) => {
    secureServer.listen({ port: Number(tlsPort), host: '127.0.0.1', backlog: 4096 }, resolve)
  })
}
server.listen({ port, host: '127.0.0.1', backlog: 4096 }, () => {
  console.log(`aedes listens on 127.0.0.1:${server.address().port}`)
})

function readRevoked () {
  try {
    secureServer?.setSecureContext(tlsOptions())
  } catch (error) {
    trouble(`the certificates can't be read, those of before hold: ${error.message}`)
  }
}

function serve (socket) {
  sockets.add(socket)
  socket.once('close', () => sockets.delete(socket))
  broker.handle(socket)
}

function tlsOptions () {
  const [ca, own, crl] = tlsFiles.map((file) => readFileSync(file))
  return { ca, crl, key: own, cert: own, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.2' }
}

function readAccounts () {
  try {
    accounts = JSON.parse(readFileSync(accountsFile, 'utf8'))
  } catch (error) {
    trouble(`the accounts can't be read, those of before hold: ${error.message}`)
  }
}

// A client that is connected has `until`, in seconds since the epoch, and the `account` it had come in by.
function disconnectWhoMayNot () {
  const now = Date.now() / 1000
  for (const client of Object.values(broker.clients)) {
    // Whose certificate is revoked, the service disconnects.
    if (client.until <= now || (!client.certified && accountOf(client.id) !== client.account)) client.close()
  }
}

function accountOf (name) {
  return Object.hasOwn(accounts.passwords, name)
    ? accounts.passwords[name]
    : Object.hasOwn(accounts.keys, name) ? accounts.keys[name] : undefined
}

// What nobody is given nobody has, as in Mosquitto's list of rights (broker/local/mosquitto.py).
function accessControl () {
  return {
    authenticate (client, username, password, done) {
      if (client.conn instanceof tls.TLSSocket) {
        const certificate = client.conn.getPeerCertificate()
        const name = certificate.subject?.CN
        if (typeof name !== 'string' || client.id !== name) {
          return done(Object.assign(new Error('not authorised'), { returnCode: 5 }), false)
        }
        client.until = Date.parse(certificate.valid_to) / 1000
        client.certified = true
        client.service = name === SERVICE_ACCOUNT
        return done(null, true)
      }
      const until = goodUntil(String(username), String(password ?? ''))
      // The user name is the client id: else a device could take the session of another one.
      if (until === undefined || client.id !== username) {
        return done(Object.assign(new Error('not authorised'), { returnCode: 5 }), false)
      }
      client.until = until
      client.account = accountOf(client.id)
      client.service = Object.hasOwn(accounts.passwords, client.id)
      done(null, true)
    },
    authorizePublish (client, packet, done) {
      const allowed = client?.service
        ? packet.topic.startsWith('devices/')
        : client && /^(presence|register|events\/[^/]+)$/.test(belowOwn(client, packet.topic))
      done(allowed ? null : new Error(`${client?.id} may not publish on ${packet.topic}`))
    },
    authorizeSubscribe (client, subscription, done) {
      const allowed = client.service
        ? subscription.topic.startsWith('devices/')
        : /^(package|commands\/[^/]+)$/.test(belowOwn(client, subscription.topic))
      done(null, allowed ? subscription : null)
    },
    authorizeForward (client, packet) {
      return client.service || belowOwn(client, packet.topic) !== '' ? packet : undefined
    }
  }
}

function belowOwn (client, topic) {
  const own = `devices/${client.id}/`
  return topic.startsWith(own) ? topic.slice(own.length) : ''
}

// Until when, in seconds since the epoch, a password lets somebody in; undefined: it does not.
function goodUntil (name, password) {
  if (Object.hasOwn(accounts.passwords, name)) {
    const digest = createHash('sha256').update(password).digest()
    return timingSafeEqual(digest, Buffer.from(accounts.passwords[name], 'hex')) ? Infinity : undefined
  }
  if (!Object.hasOwn(accounts.keys, name)) return undefined
  // broker/identity.py has the form of a token.
  const [, resource, signature, expiry] =
    /^SharedAccessSignature sr=([\w.%-]{1,128})&sig=([\w.%~-]{1,128})&se=(\d{1,12})$/.exec(password) ?? []
  if (resource !== `muster%2Fregistrations%2F${name}` || Number(expiry) <= Date.now() / 1000) return undefined
  const key = Buffer.from(accounts.keys[name], 'base64')
  const expected = createHmac('sha256', key).update(`${resource}\n${expiry}`).digest()
  let given
  try {
    given = Buffer.from(decodeURIComponent(signature), 'base64')
  } catch {
    return undefined
  }
  return given.length === expected.length && timingSafeEqual(given, expected) ? Number(expiry) : undefined
}

function trouble (text) {
  troubles += 1
  if (troubles <= MAX_TROUBLES_LOGGED) console.error(`aedes: ${text}`)
}

// No socket is closed before the end: that would publish the wills of devices that live.
async function stop () {
  server.close()
  secureServer?.close()
  for (const socket of sockets) socket.pause()
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS))
  try {
    await save()
  } catch (error) {
    console.error(`aedes: sessions were not saved: ${error.stack}`)
  }
  process.exit(0)
}

// The persistence has no list of its sessions.
function rememberSessions (persistence) {
  const ids = new Set()
  const { addSubscriptions, cleanSubscriptions } = persistence
  persistence.addSubscriptions = (client, ...rest) => {
    ids.add(client.id)
    return addSubscriptions.call(persistence, client, ...rest)
  }
  persistence.cleanSubscriptions = (client, ...rest) => {
    ids.delete(client.id)
    return cleanSubscriptions.call(persistence, client, ...rest)
  }
  return ids
}

// While a client that comes back is given its queue, a message of it may reach it on the live path and be
// acknowledged. Aedes would drop the connection then ("no such packet"); a second delivery is what QoS 1 allows.
function deliverTwiceRatherThanFail (persistence) {
  const { outgoingUpdate } = persistence
  persistence.outgoingUpdate = async (client, packet) => {
    try {
      await outgoingUpdate.call(persistence, client, packet)
    } catch (error) {
      if (error.message !== 'no such packet') throw error
    }
  }
}

// One JSON record a line: {retained: message} or {session, subscriptions, queue: [message…]}.
async function save () {
  const lines = []
  for await (const packet of persistence.createRetainedStream('#')) {
    lines.push(JSON.stringify({ retained: messageOf(packet) }))
  }
  for (const id of sessions) {
    const subscriptions = await persistence.subscriptionsByClient({ id })
    const queue = []
    for await (const packet of persistence.outgoingStream({ id })) {
      if (packet.cmd === 'publish') queue.push(messageOf(packet))
    }
    lines.push(JSON.stringify({ session: id, subscriptions, queue }))
  }
  const temporary = `${sessionsFile}.new`
  rmSync(temporary, { force: true })
  writeFileSync(temporary, lines.join('\n'), { mode: 0o600 })
  renameSync(temporary, sessionsFile)
}

async function restore () {
  if (!existsSync(sessionsFile)) return
  const text = readFileSync(sessionsFile, 'utf8')
  // Once: after a crash, what was queued long ago must not be delivered again.
  rmSync(sessionsFile)
  for (const line of text.split('\n').filter(Boolean)) {
    const { retained, session, subscriptions, queue } = JSON.parse(line)
    if (retained) {
      await persistence.storeRetained(packetOf(retained))
    } else {
      await persistence.addSubscriptions({ id: session }, subscriptions)
      for (const message of queue) await persistence.outgoingEnqueue({ clientId: session }, packetOf(message))
    }
  }
}

function messageOf ({ topic, payload, qos, retain }) {
  return { topic, payload: Buffer.from(payload).toString('base64'), qos, retain }
}

function packetOf (message) {
  return new Packet({ ...message, payload: Buffer.from(message.payload, 'base64') }, broker)
}
