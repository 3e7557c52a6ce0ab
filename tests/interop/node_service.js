// A service on Node, as amqplib is used: nothing of ours.
//
// `node node_service.js URL SERVICE` does what it is told on standard input, one JSON object a line, and writes what it
// did (`done`) and what it got (`got`), with every property as it came. amqplib is found through NODE_PATH.
"use strict";

const amqplib = require("amqplib");
const readline = require("readline");
const { randomUUID } = require("crypto");

const [url, service] = process.argv.slice(2);
const write = (kind, value) => process.stdout.write(JSON.stringify({ [kind]: value }) + "\n");

class NodeService {
  constructor(channel) {
    this.channel = channel;
  }

  async inbox({ answer = null } = {}) {
    const { queue } = await this.channel.assertQueue(`${service}.messages`, { durable: true });
    await this.channel.consume(queue, (message) => this.receive(message, answer));
    return queue;
  }

  async subscribe({ event_type }) {
    await this.channel.assertExchange("events", "topic", { durable: true });
    const { queue } = await this.channel.assertQueue(`${service}.${event_type}`, { durable: true });
    await this.channel.bindQueue(queue, "events", event_type);
    await this.channel.consume(queue, (message) => this.receive(message));
    return queue;
  }

  // `options` are amqplib's, as they are. Its own form for tagged values of a header is {"!": TYPE, "value": VALUE}.
  async put({ exchange = "", routing_key, payload, options = {} }) {
    if (exchange === "events") await this.channel.assertExchange("events", "topic", { durable: true });
    this.channel.publish(exchange, routing_key, Buffer.from(JSON.stringify(payload)), revived(options));
    await this.channel.waitForConfirms();
    return options.messageId || null;
  }

  // A request as many Node programs make it: an exclusive queue, or RabbitMQ's direct reply-to.
  async ask({ destination, payload, direct = false, options = {} }) {
    let replyTo = "amq.rabbitmq.reply-to";
    if (!direct) replyTo = (await this.channel.assertQueue("", { exclusive: true })).queue;
    await this.channel.consume(replyTo, (message) => write("got", received(message)), { noAck: true });
    const correlationId = randomUUID();
    await this.put({
      routing_key: `${destination}.messages`,
      payload,
      options: { correlationId, replyTo, appId: service, ...options },
    });
    return correlationId;
  }

  receive(message, answer = null) {
    write("got", received(message));
    this.channel.ack(message);
    if (answer === null) return;
    const { correlationId, replyTo, headers } = message.properties;
    const known = {
      messageId: randomUUID(),
      correlationId,
      appId: service,
      contentType: "application/json",
      headers: { source: service, destination: headers.source },
    };
    const queue = answer.as_the_guide_does ? `${headers.source}.messages` : replyTo;
    const options = Object.fromEntries(answer.with.map((name) => [name, known[name]]));
    this.channel.sendToQueue(queue, Buffer.from(JSON.stringify({ data: "from Node" })), options);
  }
}

// JSON has no bytes: {"$buffer": TEXT} stands for them.
function revived(value) {
  if (Array.isArray(value)) return value.map(revived);
  if (value === null || typeof value !== "object") return value;
  if ("$buffer" in value) return Buffer.from(value.$buffer);
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, revived(inner)]));
}

function received({ fields, properties, content }) {
  return { exchange: fields.exchange, routing_key: fields.routingKey, body: content.toString(), ...properties };
}

async function main() {
  const connection = await amqplib.connect(url);
  const node = new NodeService(await connection.createConfirmChannel());
  write("done", "connected");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: what, ...details } = JSON.parse(line);
    try {
      write("done", await node[what](details));
    } catch (error) {
      write("failed", `${error.name}: ${error.message}`);
    }
  }
  await connection.close();
}

main();
