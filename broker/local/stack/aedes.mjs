// Aedes, the MQTT broker in Node, as Muster's local broker where Mosquitto is not installed.
//
//   node aedes.mjs PORT NODE_MODULES
//
// Listens on 127.0.0.1 until SIGTERM or SIGINT. MQTT 3.1.1; sessions, queues and retained messages live in
// memory. Prints one line when it is ready and one for each kind of trouble.
import { createRequire } from 'node:module'
import net from 'node:net'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [port, modules] = [Number(process.argv[2]), process.argv[3]]
// The packages are in a cache, not beside this script: resolve them there.
const { resolve } = createRequire(join(modules, 'muster.js'))
const { Aedes } = await import(pathToFileURL(resolve('aedes')))

const ACCEPT_PAUSE_MS = 1000

const broker = await Aedes.createBroker({
  // The contract's device ids have up to 64 characters; MQTT 3.1 clients would be held to 23.
  maxClientsIdLength: 256,
  // Packets a client may send before its session is set up: those of a device that reconnects with a backlog.
  queueLimit: 10_000,
  // Messages that the emitter works on at once. One that waits for a slow client holds a place.
  concurrency: 1_000,
  drainTimeout: 30_000
})
// A device that drops its connection is a device's daily life, not the broker's trouble.
broker.on('clientError', () => {})
broker.on('connectionError', () => {})

const sockets = new Set()
const server = net.createServer({ noDelay: true }, (socket) => {
  sockets.add(socket)
  socket.once('close', () => sockets.delete(socket))
  broker.handle(socket)
})
server.on('error', (error) => {
  if (server.listening && (error.code === 'EMFILE' || error.code === 'ENFILE')) {
    console.error(`out of file descriptors at ${sockets.size} connections: raise the limit (ulimit -n)`)
    return
  }
  console.error(`aedes: ${error.message}`)
  process.exit(1)
})
// Where the limit is reached while it listens, Node closes the connection and says so here.
server.on('drop', () => console.error(`connection dropped at ${sockets.size} connections`))

function stop () {
  // Wills are not sent: the broker is going, not its devices. They connect again when it is back.
  server.close()
  for (const socket of sockets) socket.destroy()
  setTimeout(() => process.exit(0), 50)
}
process.once('SIGTERM', stop)
process.once('SIGINT', stop)

// A client's malformed packet must not end the broker for all others.
let troubles = 0
process.on('uncaughtException', (error) => {
  troubles += 1
  if (troubles <= 100) console.error(`aedes: ${error.stack}`)
})

server.listen({ port, host: '127.0.0.1', backlog: 4096 }, () => {
  console.log(`aedes listens on 127.0.0.1:${server.address().port}`)
})
