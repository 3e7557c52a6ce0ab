"""AMQP frames: the common ones by encoders of our own, the others by those of pika."""
