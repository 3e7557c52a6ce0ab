/* The practical limit: rabbitmq-c, one connection, confirms awaited in a window.
 *
 *   librabbitmq publish HOST PORT SERVICE MESSAGES BODY_BYTES WINDOW SECONDS
 *   librabbitmq consume HOST PORT SERVICE MESSAGES PREFETCH ACK_EVERY SECONDS
 *
 * Prints {"seconds": wall clock, "cpu": of this process}. Ends by itself after SECONDS.
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double wall, cpu;

static void start(void) {
    wall = now(CLOCK_MONOTONIC);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
}

static void stop(void) {
    wall = now(CLOCK_MONOTONIC) - wall;
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
}

static void must(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "librabbitmq: %s failed\n", what);
        exit(1);
    }
}

static amqp_table_entry_t text(const char *name, const char *value) {
    amqp_table_entry_t entry = {.key = amqp_cstring_bytes(name)};
    entry.value.kind = AMQP_FIELD_KIND_UTF8;
    entry.value.value.bytes = amqp_cstring_bytes(value);
    return entry;
}

static amqp_table_entry_t whole(const char *name, int32_t value) {
    amqp_table_entry_t entry = {.key = amqp_cstring_bytes(name)};
    entry.value.kind = AMQP_FIELD_KIND_I32;
    entry.value.value.i32 = value;
    return entry;
}

/* Wait for one answer of the broker; returns how many messages it settles. */
static uint64_t settled_by_next_answer(amqp_connection_state_t connection, uint64_t settled) {
    amqp_frame_t frame;
    must(amqp_simple_wait_frame(connection, &frame) == AMQP_STATUS_OK, "waiting for a confirm");
    must(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD, "a confirm");
    const amqp_basic_ack_t *ack = frame.payload.method.decoded;
    uint64_t count = ack->multiple ? ack->delivery_tag - settled : 1;
    amqp_maybe_release_buffers(connection);
    return count;
}

static void publish(amqp_connection_state_t connection, const char *service, const char *queue, uint64_t messages,
                    size_t size, uint64_t window) {
    char *body = malloc(size), message_id[37];
    memset(body, 'x', size);
    amqp_table_entry_t entries[] = {text("source", service), text("destination", service),
                                    text("timestamp", "2026-01-01T00:00:00.000000+00:00"), whole("ttl", 300),
                                    whole("priority", 0)};
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_PRIORITY_FLAG |
                  AMQP_BASIC_CORRELATION_ID_FLAG | AMQP_BASIC_EXPIRATION_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG |
                  AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_APP_ID_FLAG | AMQP_BASIC_HEADERS_FLAG,
        .content_type = amqp_cstring_bytes("application/json"),
        .delivery_mode = AMQP_DELIVERY_PERSISTENT,
        .correlation_id = amqp_cstring_bytes("0f5a54b4-6c1b-4d0e-8a57-0a2b7d9c3e11"),
        .expiration = amqp_cstring_bytes("300000"),
        .timestamp = 1767225600,
        .type = amqp_cstring_bytes("service_message"),
        .app_id = amqp_cstring_bytes(service),
        .headers = {5, entries}};
    amqp_bytes_t content = {size, body};

    amqp_confirm_select(connection, 1);
    must(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, "confirm.select");
    start();
    /* A confirm may overtake earlier ones: what counts is how many are settled, which multiple ones tell
       exactly enough for the window (messages of one classic queue are confirmed in order). */
    uint64_t sent = 0, settled = 0;
    while (settled < messages) {
        while (sent < messages && sent - settled < window) {
            snprintf(message_id, sizeof message_id, "%08x-0000-4000-8000-%012x", (unsigned)sent, (unsigned)sent);
            properties.message_id = amqp_cstring_bytes(message_id);
            must(amqp_basic_publish(connection, 1, amqp_empty_bytes, amqp_cstring_bytes(queue), 1, 0, &properties,
                                    content) == AMQP_STATUS_OK,
                 "basic.publish");
            sent++;
        }
        settled += settled_by_next_answer(connection, settled);
    }
    stop();
}

static void consume(amqp_connection_state_t connection, const char *queue, uint64_t messages, uint16_t prefetch,
                    uint64_t ack_every) {
    amqp_basic_qos(connection, 1, 0, prefetch, 0);
    start();
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    must(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, "basic.consume");
    for (uint64_t count = 1; count <= messages; count++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        must(amqp_consume_message(connection, &envelope, NULL, 0).reply_type == AMQP_RESPONSE_NORMAL, "a delivery");
        if (count % ack_every == 0)
            must(amqp_basic_ack(connection, 1, envelope.delivery_tag, ack_every > 1) == AMQP_STATUS_OK, "basic.ack");
        amqp_destroy_envelope(&envelope);
    }
    stop();
}

int main(int count, char **words) {
    must(count == 9, "being called: wrong number of arguments");
    const char *operation = words[1], *service = words[4];
    uint64_t messages = strtoull(words[5], NULL, 10), first = strtoull(words[6], NULL, 10),
             second = strtoull(words[7], NULL, 10);
    char queue[300];
    snprintf(queue, sizeof queue, "%s.messages", service);
    alarm((unsigned)atoi(words[8]));

    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    must(amqp_socket_open(socket, words[2], atoi(words[3])) == AMQP_STATUS_OK, "connecting");
    must(amqp_login(connection, "/", 0, AMQP_DEFAULT_FRAME_SIZE, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest")
                 .reply_type == AMQP_RESPONSE_NORMAL,
         "logging in");
    amqp_channel_open(connection, 1);
    must(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, "opening a channel");

    if (strcmp(operation, "publish") == 0)
        publish(connection, service, queue, messages, first, second);
    else
        consume(connection, queue, messages, (uint16_t)first, second);

    printf("{\"seconds\": %.6f, \"cpu\": %.6f}\n", wall, cpu);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
