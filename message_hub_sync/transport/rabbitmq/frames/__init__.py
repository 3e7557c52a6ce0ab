"""AMQP frames: the common ones are encoded and decoded here, the others by pika."""
