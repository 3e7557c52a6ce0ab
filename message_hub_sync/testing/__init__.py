"""What tests of services that use the hub need: a throwaway RabbitMQ node, and more."""
