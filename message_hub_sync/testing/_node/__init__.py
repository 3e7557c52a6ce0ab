"""How a RabbitMQ node is found, started and ended."""
