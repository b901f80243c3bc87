// A producer of mail requests in Node: publishes one, and hears what becomes of them. See the README beside it.
//
//   node producer.js publish ada@example.bj 4711    prints the request's id once the broker has the message
//   node producer.js events [COUNT]                 prints what became of mails, a JSON object a line
//
// AMQP_URL says where the broker is, POSTRIDER_PROTO where the folder of the contract is (proto).
'use strict'

const { createHash, randomBytes } = require('node:crypto')
const path = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')

const amqp = require('amqplib')
const protobuf = require('protobufjs')

const REQUESTS = 'email.requests'
const EVENTS = 'email.events'
// Who we are: the first word of routing keys, and of the queue with our events.
const SOURCE = 'support'
// Ours alone; names of requests are made in it.
const NAMESPACE = '5f1d9a6e3c524e0b9a416a0f7a6d2f11'
// Publishing is tried this often before it is somebody else's trouble.
const TRIES = 5
// Events that were seen lately, so that one that comes twice counts once.
const SEEN_MAX = 10_000

function contract () {
  const root = new protobuf.Root()
  const folder = process.env.POSTRIDER_PROTO || path.join(__dirname, '../../../proto')
  // google/protobuf/*.proto are protobufjs's own.
  root.resolvePath = (_, target) => target.startsWith('google/') ? target : path.join(folder, target)
  root.loadSync('postrider/v1/email.proto')
  return { Request: root.lookupType('postrider.v1.EmailRequest'), Event: root.lookupType('postrider.v1.EmailEvent') }
}

const { Request, Event } = contract()

// A UUID of version 5 (RFC 9562): the same name has the same id.
function nameId (name) {
  const hash = createHash('sha1').update(Buffer.from(NAMESPACE, 'hex')).update(name).digest()
  hash[6] = (hash[6] & 0x0f) | 0x50
  hash[8] = (hash[8] & 0x3f) | 0x80
  return hash.toString('hex', 0, 16).replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

// protobufjs knows google.protobuf.Struct as a message like any other.
function toValue (value) {
  if (value === null || value === undefined) return { nullValue: 0 }
  if (typeof value === 'number') return { numberValue: value }
  if (typeof value === 'boolean') return { boolValue: value }
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } }
  if (typeof value === 'object') return { structValue: toStruct(value) }
  return { stringValue: String(value) }
}

function toStruct (object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([name, value]) => [name, toValue(value)])) }
}

// What this service has to say. The id is made from what the mail is about, so that whoever says it again, after a crash
// or a doubt, says it under the same id, and one mail is sent.
function ticketCreated (to, ticket) {
  const request = {
    requestId: nameId(`ticket-created/${ticket}`),
    source: SOURCE,
    templateKey: 'support_ticket_created',
    recipients: [{ address: to, displayName: 'Ada' }],
    variables: toStruct({
      ticket_number: ticket,
      title: 'No signal since this morning',
      priority: 'P2',
      support_link: `https://support.example.bj/${ticket}`
    }),
    priority: Request.root.lookupEnum('postrider.v1.Priority').values.P1,
    metadata: { ticket: String(ticket) }
  }
  // encode() does not look: a string where a number belongs would be sent as nonsense.
  const problem = Request.verify(request)
  if (problem) throw new Error(problem)
  return request
}

// A service with tracing has its current span injected by OpenTelemetry's propagator; this one begins a trace, unless
// TRACEPARENT names one.
function traceparent () {
  return process.env.TRACEPARENT || `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01`
}

async function connect () {
  const connection = await amqp.connect(process.env.AMQP_URL)
  // Without a listener a lost line would end the process; what waits for it is told by its promise.
  connection.on('error', () => {})
  return connection
}

// Returns when the broker has it for good: confirmed, and not returned.
async function publish (request) {
  for (let left = TRIES - 1, pause = 200; ; left--, pause *= 2) {
    try {
      return await publishOnce(request)
    } catch (error) {
      // What the broker refuses (no such exchange, no permission, no queue) is not mended by trying again. Otherwise it is
      // not known whether it arrived, and the same id makes trying again harmless.
      if (left === 0 || error.code >= 300) throw error
      await sleep(pause)
    }
  }
}

// A service keeps connection and channel open and publishes all its requests over them.
async function publishOnce (request) {
  const connection = await connect()
  try {
    const channel = await connection.createConfirmChannel()
    const now = Date.now()
    const options = {
      contentType: 'application/x-protobuf',
      type: 'postrider.v1.EmailRequest',
      messageId: request.requestId,
      persistent: true,
      priority: 6,
      timestamp: Math.floor(now / 1000),
      headers: { 'x-published-at-ms': now, traceparent: traceparent() },
      mandatory: true
    }
    await new Promise((resolve, reject) => {
      // A message that no queue takes is returned before it is confirmed.
      channel.on('return', ({ fields }) => {
        reject(Object.assign(new Error(`no queue takes it: ${fields.replyText}`), { code: fields.replyCode }))
      })
      channel.on('error', reject)
      channel.publish(REQUESTS, `${SOURCE}.p1`, Buffer.from(Request.encode(request).finish()), options, (error) => {
        error ? reject(error) : resolve()
      })
    })
  } finally {
    await connection.close().catch(() => {})
  }
}

// Prints events from a queue of our own, which keeps them while we are away.
async function events (count) {
  const connection = await connect()
  const channel = await connection.createChannel()
  const queue = `${SOURCE}.email-events`
  // When nobody reads it, the oldest go: a queue that refused would hold up the events of all.
  const args = { 'x-queue-type': 'quorum', 'x-max-length': 100_000, 'x-overflow': 'drop-head' }
  await channel.assertQueue(queue, { durable: true, arguments: args })
  await channel.bindQueue(queue, EVENTS, `${SOURCE}.*`)
  await channel.prefetch(100)
  const seen = new Set()
  await new Promise((resolve, reject) => {
    channel.on('error', reject)
    connection.on('close', () => reject(new Error('the broker ended the subscription')))
    channel.consume(queue, (message) => {
      if (message === null) return reject(new Error('the queue was deleted'))
      if (count === 0) return
      const event = Event.decode(message.content)
      if (!seen.has(event.eventId)) {
        seen.add(event.eventId)
        // A Set keeps the order in which it was filled.
        if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value)
        console.log(JSON.stringify({
          request_id: event.requestId,
          kind: event.kind,
          recipient: event.recipient,
          reason: event.reason,
          attempt: event.attempt,
          metadata: event.metadata
        }))
        count--
      }
      // Only now: an event that we crash on comes again.
      channel.ack(message)
      if (count === 0) resolve()
    }).catch(reject)
  })
  // Closing sends what was acknowledged first.
  await channel.close()
  await connection.close()
}

async function main ([command, ...rest]) {
  if (command === 'publish' && rest.length === 2) {
    const request = ticketCreated(rest[0], Number(rest[1]))
    await publish(request)
    console.log(request.requestId)
  } else if (command === 'events' && rest.length <= 1) {
    await events(rest.length === 1 ? Number(rest[0]) : Infinity)
  } else {
    throw new Error('producer.js publish ADDRESS TICKET | producer.js events [COUNT]')
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})
